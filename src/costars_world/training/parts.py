"""The parts of the built-in world, in the order in which they build on each other."""

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
from costars_world.judge.judge import Judge, JudgeNet
from costars_world.training import base, concepts, judge, latents, loop, samples, segmenter, vae
from costars_world.training import dataset as corpus
from costars_world.training.context import Said, UnfinishedError, Workshop
from costars_world.training.export import save_half, write_card
from costars_world.training.parallel import spread

PICTURES = 40_000  # rendered once, 5 ms each and core
FOR_SEGMENTER = 14_000
FOR_JUDGE = 20_000
HELD_OUT = 500
M = TypeVar("M", bound=torch.nn.Module)


def train_vae(shop: Workshop) -> Iterator[Said]:
    """The autoencoder on crops, then its decoder on whole pictures; old latents are thrown away."""
    if not shop.resume:
        shutil.rmtree(shop.work / "latents", ignore_errors=True)
    yield from shop.rendered(PICTURES)
    data = corpus.load(shop.pictures, PICTURES)
    model = vae.build()

    def drawn(run: loop.Run) -> Image.Image:
        return samples.decoded(_averaged(model, run))

    steps = vae.train(model, data, shop.checkpoint("vae"), recipe=vae.RECIPE, **shop.terms())
    crops = yield from shop.trained("vae", vae.RECIPE, steps, drawn)
    loop.put_average(crops, model)
    checkpoint = shop.checkpoint("vae-whole")
    steps = vae.train(model, data, checkpoint, recipe=vae.WHOLE_RECIPE, decoder_only=True, **shop.terms())
    run = yield from shop.trained("vae-whole", vae.WHOLE_RECIPE, steps, drawn)
    loop.put_average(run, model)
    model.eval()
    mean, _ = latents.moments(model, torch.from_numpy(corpus.load_images(shop.pictures, 0)))
    model.register_to_config(scaling_factor=1 / float(mean.std()))
    model.save_pretrained(shop.work / "vae")
    target = shop.weights / "model" / "vae"
    save_half(model, target)
    before = {"recipe of the crops": asdict(vae.RECIPE), "steps on crops": crops.step}
    write_card(
        target / "card.json", vae.WHOLE_RECIPE, run, shop.device, **before, **{"seconds on crops": round(crops.seconds)}
    )


def train_base(shop: Workshop) -> Iterator[Said]:
    """UNet and text encoders on the autoencoder's latents of the corpus."""
    yield from shop.rendered(PICTURES)
    decoder = AutoencoderKL.from_pretrained(shop.work / "vae").to(shop.device).eval()
    for done in latents.encode(decoder, shop.pictures, shop.work / "latents", PICTURES):
        yield done, PICTURES, "latents"
    captions = corpus.load_captions(shop.pictures, PICTURES)
    encoded = latents.load(shop.work / "latents", PICTURES)
    folder = shop.work / "model"
    model = base.build(folder)

    def drawn(run: loop.Run) -> Image.Image:
        shown = samples.as_model(samples.averaged(model, run), decoder, shop.device)
        return samples.tiled(samples.sample(shown, samples.PROMPTS))

    steps = base.train(model, encoded, captions, shop.checkpoint("base"), recipe=base.RECIPE, **shop.terms())
    run = yield from shop.trained("base", base.RECIPE, steps, drawn)
    loop.put_average(run, model.trained())
    base.save(model, folder)
    write_card(folder / "card.json", base.RECIPE, run, shop.device)
    shutil.copytree(folder, shop.weights / "model", dirs_exist_ok=True)


def train_segmenter(shop: Workshop) -> Iterator[Said]:
    """The segmenter on rendered truth; its card holds how right it is on pictures it has not seen."""
    yield from shop.rendered(FOR_SEGMENTER)
    data = corpus.load(shop.pictures, FOR_SEGMENTER)
    net = SegmenterNet()

    def averaged(run: loop.Run) -> WorldSegmenter:
        return WorldSegmenter(_averaged(net, run), shop.device)

    steps = segmenter.train(net, data, shop.checkpoint("segmenter"), recipe=segmenter.RECIPE, **shop.terms())
    run = yield from shop.trained("segmenter", segmenter.RECIPE, steps, lambda run: samples.segmented(averaged(run)))
    loop.put_average(run, net)
    held_out = segmenter.measure(WorldSegmenter(net.eval(), shop.device), HELD_OUT)
    folder = shop.weights / "segmenter"
    folder.mkdir(parents=True, exist_ok=True)
    _save_net(net, folder)
    write_card(folder / "card.json", segmenter.RECIPE, run, shop.device, held_out=held_out)


def train_judge(shop: Workshop) -> Iterator[Said]:
    """The judge on figures of rendered pictures; its card holds how right it is on those it has not seen."""
    folder = shop.work / "figures"
    for done in corpus.write_chunks(folder, FOR_JUDGE, shop.workers, judge.render_chunk):
        yield done, FOR_JUDGE, "figures"
    net = JudgeNet()

    def averaged(run: loop.Run) -> Judge:
        return Judge(_averaged(net, run, "net."), shop.device)

    figures = judge.load(folder, FOR_JUDGE)
    steps = judge.train(net, figures, shop.checkpoint("judge"), recipe=judge.RECIPE, **shop.terms())
    run = yield from shop.trained("judge", judge.RECIPE, steps, lambda run: samples.look_alikes(averaged(run)))
    best = averaged(run)
    target = shop.judge_weights
    target.mkdir(parents=True, exist_ok=True)
    _save_net(best.net, target)
    held_out = judge.measure(best, HELD_OUT)
    write_card(target / "card.json", judge.RECIPE, run, shop.device, held_out=held_out)


def train_concepts(shop: Workshop) -> Iterator[Said]:
    """The concept pack, several at a time on a CPU; resuming skips those that were taught to this very model."""
    source, folder = shop.weights / "model", shop.weights / "concepts"
    model = load_model(Source("builtin", source), shop.device, torch.float32, 0, "world")
    names = [n for n in concepts.PACK if not (shop.resume and concepts.is_of(folder, n, model))]
    of, began = len(concepts.PACK), time.monotonic()
    tasks = [(source, folder, str(shop.device), name) for name in names]
    workers = shop.workers if shop.device.type == "cpu" else 1
    with closing(spread(_teach, tasks, workers)) as taught:
        for done, name in enumerate(taught, start=of - len(names) + 1):
            samples.taught(model, folder, name).save(shop.work / f"concepts-{name}.png")
            yield done, of, name
            if done < of and time.monotonic() - began > 60 * shop.minutes:
                raise UnfinishedError(f"concepts: {done} of {of}; go on with --resume")


def _teach(task: tuple[Path, Path, str, str]) -> str:
    source, folder, device, name = task
    model = load_model(Source("builtin", source), torch.device(device), torch.float32, 0, "world")
    for _ in concepts.teach(model, folder, name):
        pass
    return name


def _averaged(module: M, run: loop.Run, prefix: str = "") -> M:
    copied = copy.deepcopy(module).eval()
    loop.put_average(run, copied, prefix)
    return copied


def _save_net(net: torch.nn.Module, folder: Path) -> None:
    tensors = {k: v.to(torch.float16).cpu().contiguous() for k, v in net.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


# To add a part, add a line.
PARTS: Mapping[str, Callable[[Workshop], Iterator[Said]]] = {
    "vae": train_vae,
    "base": train_base,
    "segmenter": train_segmenter,
    "judge": train_judge,
    "concepts": train_concepts,
}
