"""Two stages at true size on random weights, which are as fast as trained ones.

Seconds and peak memory of whole pictures of k concepts, drawn by the program itself from a checkpoint and
LoRA files, against (a) diffusers' own pipeline for the same number of UNet rows at the batch where a row is
cheapest, and (b) the official OMG schedule: four base rows a step in both stages, attention probabilities
written out, one adapter after the other, by the time of its calls. All in one run:

    python bench/sdxl.py [--family sdxl|sd15] [--size 1024] [--k 1 2 3 5] [--tiny] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from checkpoint import ATTENTION, RANK, describe_run, format_heading, parse_options, save_checkpoint, save_masks
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.utils import logging
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from costars import Scene, Studio, open_studio
from costars.model.model import Model
from costars.model.predict import Conditioning, predict_noise
from costars.retry import last
from costars.types import Picture, Plan, Text

STEPS, START = 50, 16  # OMG's code
PIPELINE_STEPS = 10  # of (a): its cost is per step, and nothing else is timed
BATCHES = (1, 2, 4)  # pictures at once for (a), each two rows


def timed(run: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median seconds of a call, after one that warms up."""
    run()
    took = []
    for _ in range(rounds):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def scene_of(folder: Path, k: int, size_px: int, steps: int = STEPS) -> Scene:
    """k concepts side by side, each with a LoRA of its own and a mask that is given."""
    masks = save_masks(folder, k, size_px)
    names = [f"c{i}" for i in range(k)]
    cast = {
        name: {"concept": str(folder / f"{i}.safetensors"), "class_name": "man", "where": str(mask)}
        for i, (name, mask) in enumerate(zip(names, masks, strict=True))
    }
    prompt = " and ".join(f"{{{name}}}" for name in names) + " in a park"
    told = {"prompt": prompt, "cast": cast, "model": str(folder), "steps": steps, "start": START / STEPS}
    return Scene.model_validate(told)


def drawn(studio: Studio, scene: Scene) -> tuple[Picture, dict[str, float | None]]:
    """The picture, and for each stage the most memory that was taken, in GiB; None on a CPU."""
    peak: dict[str, float | None] = {}
    with _watched(studio.device, peak, "layout"):
        plan = last(studio.plan_steps(scene), Plan)
    with _watched(studio.device, peak, "personalise"):
        picture = last(studio.render_steps(plan), Picture)
    return picture, peak


@contextmanager
def _watched(device: torch.device, peak: dict[str, float | None], name: str) -> Iterator[None]:
    """Within the block the most memory taken on a GPU is watched, and told under a name."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    yield
    peak[name] = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None


@torch.no_grad()
def pipeline_row(model: Model, rounds: int) -> float:
    """(a): seconds of a UNet row in diffusers' own pipeline, at the batch where it is cheapest."""
    own, empty = model.encode_text("a man in a park"), model.encode_text("")
    told: dict[str, Any] = {"prompt_embeds": own.tokens[0:1], "negative_prompt_embeds": empty.tokens[0:1]}
    if own.pooled is not None:
        kind: Any = StableDiffusionXLPipeline
        told |= {"pooled_prompt_embeds": own.pooled, "negative_pooled_prompt_embeds": empty.pooled}
        left_out = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    else:
        kind = StableDiffusionPipeline
        left_out = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        left_out |= {"requires_safety_checker": False}
    pipeline = kind(unet=model.unet, vae=model.vae, scheduler=model.scheduler, **left_out)
    pipeline.set_progress_bar_config(disable=True)
    width, height = model.info.size_px
    size = {"width": width, "height": height, "num_inference_steps": PIPELINE_STEPS, "output_type": "latent"}

    def run(pictures: int) -> Callable[[], object]:
        return lambda: pipeline(num_images_per_prompt=pictures, guidance_scale=5.0, **size, **told)

    return min(timed(run(n), rounds, model.device) / (2 * n * PIPELINE_STEPS) for n in BATCHES)


@torch.no_grad()
def official(model: Model, k: int, rounds: int) -> float:
    """(b): seconds of the official schedule: 2 x 50 calls of four base rows, then k of two for each of 34 steps."""
    text = model.encode_text("a man in a park")
    model.unet.set_attn_processor(AttnProcessor())  # probabilities written out in every layer, edited or not
    base = timed(lambda: call(model, text, 4), rounds, model.device)
    model.unet.set_attn_processor(AttnProcessor2_0())  # the official concept pipeline uses xFormers
    config = LoraConfig(r=RANK, target_modules=list(ATTENTION), init_lora_weights=False)
    for i in range(k):
        inject_adapter_in_model(config, model.unet, adapter_name=str(i))
    layers = [module for module in model.unet.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.to(model.device, model.dtype)
        layer.requires_grad_(False)

    def switched() -> None:
        for i in range(k):
            for layer in layers:
                layer.set_adapter(str(i))
            call(model, text, 2)

    concepts = timed(switched, rounds, model.device)
    for name, module in list(model.unet.named_modules()):
        if isinstance(module, LoraLayer):
            parent = model.unet.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    del model.unet.peft_config
    return 2 * STEPS * base + (STEPS - START) * concepts


def call(model: Model, text: Text, rows: int) -> object:
    """One call of the UNet as it stands."""
    h, w = model.latent_size(model.info.size_px)
    sample = torch.randn(rows, model.info.latent_channels, h, w).to(model.device, model.dtype)
    pooled = None if text.pooled is None else text.pooled.expand(rows, -1)
    own = Conditioning(text.tokens[0:1].expand(rows, -1, -1), pooled, model.size_ids(model.info.size_px))
    return predict_noise(model.unet, sample, torch.tensor(500, device=model.device), own)


def measured(folder: Path, options: argparse.Namespace, device: torch.device, dtype: str) -> Iterator[dict[str, Any]]:
    """One row of the table for each way of using memory and each k; the ratios are those of the whole model."""
    for memory in options.memory:
        studio = open_studio(device.type, dtype, memory=memory)
        whole = memory == "full"
        model = studio.model(str(folder))
        row_seconds = pipeline_row(model, options.rounds) if whole else None
        for k in options.k:
            drawn(studio, scene_of(folder, k, options.size, steps=4))
            pictures = [drawn(studio, scene_of(folder, k, options.size)) for _ in range(options.rounds)]
            parts = ("layout", "personalise", "decode")
            seconds = {p: statistics.median(picture.seconds[p] for picture, _ in pictures) for p in parts}
            rows, two_stage = sum(pictures[0][0].rows.values()), seconds["layout"] + seconds["personalise"]
            row = {"memory": memory, "k": k, "rows": rows, "seconds": seconds, "peak_gib": pictures[0][1]}
            if row_seconds is not None:
                theirs = official(model, k, options.rounds)
                seconds |= {"diffusers": rows * row_seconds, "official": theirs}
                row |= {
                    "over_diffusers": two_stage / rows / row_seconds,
                    "times_faster_than_official": theirs / two_stage,
                }
            yield row
        del model, studio
        if device.type == "cuda":
            torch.cuda.empty_cache()


def line_of(row: dict[str, Any]) -> str:
    """A row of the table as it is printed."""
    seconds, peak = row["seconds"], row["peak_gib"]
    line = f"{row['memory']}, k={row['k']}: {row['rows']} rows, layout {seconds['layout']:.2f} s, "
    line += f"personalise {seconds['personalise']:.2f} s, decode {seconds['decode']:.2f} s"
    if "over_diffusers" in row:
        line += f"; {row['over_diffusers']:.2f} x as long as diffusers' pipeline for these rows"
        line += f"; {row['times_faster_than_official']:.2f} x as fast as the official schedule"
    if peak["layout"] is not None:
        line += f"; peak {peak['layout']:.1f} and {peak['personalise']:.1f} GiB"
    return line


def main() -> None:
    """Measure, print and, if asked, write."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--rounds", type=int, default=3, help="pictures, and calls, of which the median is told")
    parser.add_argument("--memory", nargs="+", default=["full", "offload"] if on_gpu else ["full"])
    options, device, dtype = parse_options(parser)
    logging.disable_progress_bar()
    facts = describe_run(options, device, dtype)
    print(format_heading(facts))
    table = []
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), options.family, options.tiny, options.size, device, dtype)
        for row in measured(Path(folder), options, device, dtype):
            table.append(row)
            print(line_of(row), flush=True)
    if options.out:
        options.out.write_text(json.dumps({**facts, "rounds": options.rounds, "table": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
