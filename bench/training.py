"""Seconds per step of LoRA training on random weights, against a plain loop as in diffusers' example script.

Both loops train the same LoRA layers of the UNet's attention in the same precision, one image of the model's native
size per step, with precomputed latents and text, with or without gradient checkpointing. Both are measured in one run:

    python bench/training.py [--family sdxl|sd15] [--size 1024] [--steps 10] [--tiny] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from checkpoint import ATTENTION, RANK, describe_run, format_heading, parse_options, save_checkpoint
from peft import LoraConfig
from PIL import Image

from costars import open_studio
from costars.model.model import Model
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject
from costars.train.loop import TRAINING, Progress, train
from costars.train.recipe import Recipe
from costars.train.recipes import RECIPES
from costars.train.task import TrainingTask

CAPTION, LEARNING_RATE, NUM_IMAGES = "a zwx man in a park", 1e-4, 4
WARMUP_STEPS = 2


def make_recipe(family: str, steps: int, on_gpu: bool) -> Recipe:
    """The family's LoRA recipe, of the UNet alone with one image per step."""
    return replace(
        RECIPES["lora"][family],
        text_encoder="none",
        rank=RANK,
        alpha=RANK,
        batch_size=1,
        gradient_accumulation_steps=1,
        steps=steps,
        precision="bf16" if on_gpu else "fp32",
    )


def train_with_costars(model: Model, recipe: Recipe, size_px: int) -> Iterator[object]:
    """Steps of costars' training loop."""
    images = [Image.effect_noise((size_px, size_px), 60 + i).convert("RGB") for i in range(NUM_IMAGES)]
    examples = [Example(image, CAPTION, None, f"{i}.png") for i, image in enumerate(images)]
    subject = TrainingSubject(name="zwx", class_name="man", trigger="zwx", examples=examples)
    events = train(TrainingTask(model, [subject], recipe))
    yield from (event for event in events if isinstance(event, Progress) and event.stage == TRAINING)


def train_with_diffusers(model: Model, recipe: Recipe, size_px: int) -> Iterator[object]:
    """Steps of a loop like diffusers' train_dreambooth_lora_sdxl.py: peft, AdamW, autocast, clipped gradients."""
    unet, device = model.unet, model.device
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(ATTENTION)))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if recipe.gradient_checkpointing:
        unet.train()
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-2)
    text, (h, w) = model.encode_text(CAPTION), model.latent_size((size_px, size_px))
    latents = torch.randn(NUM_IMAGES, 1, model.info.latent_channels, h, w, device=device)
    added = None
    if text.pooled is not None:
        added = {"text_embeds": text.pooled, "time_ids": model.size_ids((size_px, size_px))}
    alphas = model.scheduler.alphas_cumprod.to(device)
    for step in range(recipe.steps):
        t, noise = torch.randint(len(alphas), (1,), device=device), torch.randn_like(latents[0])
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents[step % NUM_IMAGES] + (1 - a).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            predicted = unet(noisy, t, text.tokens[0:1], added_cond_kwargs=added).sample
            loss = (predicted.float() - noise).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())
    unet.disable_gradient_checkpointing()
    unet.eval()
    unet.delete_adapters("default")


def time_steps(steps: Iterable[object], device: torch.device) -> tuple[float, float | None]:
    """(median seconds of a step without warmup, peak GiB on a GPU or None)."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds, started = [], time.perf_counter()
    for _ in steps:
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    peak_gib = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None
    return statistics.median(seconds[WARMUP_STEPS:]), peak_gib


def measure(folder: Path, options: argparse.Namespace, device: torch.device, dtype: str) -> dict[str, Any]:
    """Measure both loops on one checkpoint, one after the other."""
    recipe = make_recipe(options.family, options.steps, device.type == "cuda")
    results: dict[str, Any] = {
        "seconds": {},
        "peak_gib": {},
        "gradient_checkpointing": recipe.gradient_checkpointing,
    }
    for name, loop in (("diffusers", train_with_diffusers), ("costars", train_with_costars)):
        model = open_studio(device.type, dtype).model(str(folder))
        results["seconds"][name], results["peak_gib"][name] = time_steps(loop(model, recipe, options.size), device)
        del model
    results["over_diffusers"] = results["seconds"]["costars"] / results["seconds"]["diffusers"]
    return results


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps of each loop, of which two are warmup")
    options, device, dtype = parse_options(parser)
    if options.steps < 3:
        parser.error(f"--steps {options.steps}: want at least 3, of which two are warmup")
    facts = describe_run(options, device, dtype)
    print(format_heading(facts))
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), options.family, options.tiny, options.size, device, dtype)
        results = measure(Path(folder), options, device, dtype)
    for loop, seconds in results["seconds"].items():
        peak = results["peak_gib"][loop]
        print(f"{loop}: {seconds:.3f} s per step{'' if peak is None else f', peak {peak:.1f} GiB'}")
    print(f"costars takes {results['over_diffusers']:.2f} x as long")
    if options.out:
        options.out.write_text(json.dumps({**facts, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
