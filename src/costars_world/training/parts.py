"""The parts of the built-in models, in the order in which they depend on each other."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file

from costars.builtin.segmenter import SegmenterNet, WorldSegmenter
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.model import Model
from costars_world.judge.judge import Judge, JudgeNet
from costars_world.training import base, concepts, dataset, judge, latents, loop, samples, segmenter, vae
from costars_world.training.context import Status, TrainingContext, UnfinishedError
from costars_world.training.export import save_fp16, write_card
from costars_world.training.parallel import run_parallel

NUM_PICTURES = 40_000  # rendered once, 5 ms each per core
NUM_SEGMENTER_PICTURES = 14_000
NUM_JUDGE_PICTURES = 20_000
NUM_HELD_OUT = 500
M = TypeVar("M", bound=torch.nn.Module)


def train_vae(context: TrainingContext) -> Iterator[Status]:
    """Train the autoencoder on crops, then its decoder on whole pictures; deletes old latents unless resuming."""
    if not context.resume:
        shutil.rmtree(context.work / "latents", ignore_errors=True)
    yield from context.render_pictures(NUM_PICTURES)
    data = dataset.load(context.pictures, NUM_PICTURES)
    model = vae.build()

    def draw_sheet(run: loop.Run) -> Image.Image:
        return samples.draw_reconstructions(_copy_with_average(model, run))

    steps = vae.train(model, data, context.run_options("vae", vae.RECIPE))
    crops = yield from context.finish_run("vae", steps, draw_sheet)
    loop.copy_average(crops, model)
    options = context.run_options("vae-whole", vae.WHOLE_RECIPE)
    run = yield from context.finish_run("vae-whole", vae.train(model, data, options, decoder_only=True), draw_sheet)
    loop.copy_average(run, model)
    model.eval()
    mean, _ = latents.encode_images(model, torch.from_numpy(dataset.load_images(context.pictures, 0)))
    model.register_to_config(scaling_factor=1 / float(mean.std()))
    model.save_pretrained(context.work / "vae")
    target = context.weights / "model" / "vae"
    save_fp16(model, target)
    crop_stage = {
        "recipe of the crops": asdict(vae.RECIPE),
        "steps on crops": crops.step,
        "seconds on crops": round(crops.seconds),
    }
    write_card(target / "card.json", vae.WHOLE_RECIPE, run, context.device, **crop_stage)


def train_base(context: TrainingContext) -> Iterator[Status]:
    """Train the UNet and the text encoders on the latents of the rendered pictures."""
    yield from context.render_pictures(NUM_PICTURES)
    decoder = AutoencoderKL.from_pretrained(context.work / "vae").to(context.device).eval()
    for done in latents.encode_dataset(decoder, context.pictures, context.work / "latents", NUM_PICTURES):
        yield Status(done, NUM_PICTURES, "latents")
    captions = dataset.load_captions(context.pictures, NUM_PICTURES)
    encoded = latents.load(context.work / "latents", NUM_PICTURES)
    folder = context.work / "model"
    model = base.build(folder)

    def draw_sheet(run: loop.Run) -> Image.Image:
        averaged = samples.make_model(samples.copy_with_average(model, run), decoder, context.device)
        return samples.tile_images(samples.sample_images(averaged, samples.PROMPTS))

    steps = base.train(model, encoded, captions, context.run_options("base", base.RECIPE))
    run = yield from context.finish_run("base", steps, draw_sheet)
    loop.copy_average(run, model.trainable_modules())
    base.save(model, folder)
    write_card(folder / "card.json", base.RECIPE, run, context.device)
    shutil.copytree(folder, context.weights / "model", dirs_exist_ok=True)


def train_segmenter(context: TrainingContext) -> Iterator[Status]:
    """Train the segmenter; its card has its scores on held-out pictures."""
    yield from context.render_pictures(NUM_SEGMENTER_PICTURES)
    data = dataset.load(context.pictures, NUM_SEGMENTER_PICTURES)
    net = SegmenterNet()

    def draw_sheet(run: loop.Run) -> Image.Image:
        return samples.draw_segmentations(WorldSegmenter(_copy_with_average(net, run), context.device))

    steps = segmenter.train(net, data, context.run_options("segmenter", segmenter.RECIPE))
    run = yield from context.finish_run("segmenter", steps, draw_sheet)
    loop.copy_average(run, net)
    held_out = segmenter.evaluate(WorldSegmenter(net.eval(), context.device), NUM_HELD_OUT)
    folder = context.weights / "segmenter"
    folder.mkdir(parents=True, exist_ok=True)
    _save_net(net, folder)
    write_card(folder / "card.json", segmenter.RECIPE, run, context.device, held_out=held_out)


def train_judge(context: TrainingContext) -> Iterator[Status]:
    """Train the judge on crops of figures; its card has its scores on held-out pictures."""
    folder = context.work / "figures"
    for done in dataset.write_chunks(folder, NUM_JUDGE_PICTURES, context.workers, judge.render_chunk):
        yield Status(done, NUM_JUDGE_PICTURES, "figures")
    net = JudgeNet()

    def averaged_judge(run: loop.Run) -> Judge:
        return Judge(_copy_with_average(net, run, "net."), context.device)

    figures = judge.load(folder, NUM_JUDGE_PICTURES)
    steps = judge.train(net, figures, context.run_options("judge", judge.RECIPE))
    run = yield from context.finish_run("judge", steps, lambda run: samples.draw_nearest_figures(averaged_judge(run)))
    trained = averaged_judge(run)
    target = context.judge_weights
    target.mkdir(parents=True, exist_ok=True)
    _save_net(trained.net, target)
    held_out = judge.evaluate(trained, NUM_HELD_OUT)
    write_card(target / "card.json", judge.RECIPE, run, context.device, held_out=held_out)


def train_concepts(context: TrainingContext) -> Iterator[Status]:
    """Train the concept pack, several concepts at a time on a CPU; resuming skips those that are up to date."""
    source, folder = context.weights / "model", context.weights / "concepts"
    model = _load_builtin(source, context.device)
    names = [n for n in concepts.PACK if not (context.resume and concepts.is_up_to_date(folder, n, model))]
    total, started = len(concepts.PACK), time.monotonic()
    tasks = [(source, folder, str(context.device), name) for name in names]
    workers = context.workers if context.device.type == "cpu" else 1
    with closing(run_parallel(_train_concept, tasks, workers)) as finished:
        for done, name in enumerate(finished, start=total - len(names) + 1):
            samples.draw_concept(model, folder, name).save(context.work / f"concepts-{name}.png")
            yield Status(done, total, name)
            if done < total and time.monotonic() - started > 60 * context.minutes:
                raise UnfinishedError(f"concepts: {done} of {total} done; continue with --resume")


def _train_concept(task: tuple[Path, Path, str, str]) -> str:
    source, folder, device, name = task
    for _ in concepts.train(_load_builtin(source, torch.device(device)), folder, name):
        pass
    return name


def _load_builtin(source: Path, device: torch.device) -> Model:
    return load_model(Source("builtin", source), device, torch.float32, 0, "world")


def _copy_with_average(module: M, run: loop.Run, prefix: str = "") -> M:
    copied = copy.deepcopy(module).eval()
    loop.copy_average(run, copied, prefix)
    return copied


def _save_net(net: torch.nn.Module, folder: Path) -> None:
    tensors = {k: v.to(torch.float16).cpu().contiguous() for k, v in net.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


# To add a part, add a line.
PARTS: Mapping[str, Callable[[TrainingContext], Iterator[Status]]] = {
    "vae": train_vae,
    "base": train_base,
    "segmenter": train_segmenter,
    "judge": train_judge,
    "concepts": train_concepts,
}
