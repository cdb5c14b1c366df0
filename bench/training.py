"""A step of LoRA training at true size on random weights, against a plain loop as diffusers' example script has it.

Both teach the same low-rank layers on the UNet's attention, in the same precision, one picture of the model's own
size at a time, latents and text encoded before, gradient checkpointing on both sides or on none. All in one run:

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
from checkpoint import ATTENTION, RANK, asked, facts_of, heading_of, save_checkpoint
from peft import LoraConfig
from PIL import Image

from costars import open_studio
from costars.model.model import Model
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject
from costars.train.loop import TEACHING, Progress, teach
from costars.train.recipes import RECIPES, Recipe

CAPTION, RATE, PICTURES = "a zwx man in a park", 1e-4, 4


def recipe_of(family: str, steps: int, on_gpu: bool) -> Recipe:
    """The family's LoRA, on the UNet alone and one picture a step."""
    precision = "bf16" if on_gpu else "fp32"
    own = RECIPES["lora"][family]
    return replace(
        own,
        text_encoder="none",
        rank=RANK,
        alpha=RANK,
        batch_size=1,
        gradient_accumulation_steps=1,
        steps=steps,
        precision=precision,
    )


def ours(model: Model, recipe: Recipe, size_px: int) -> Iterator[object]:
    """The program's own loop, a step at a time."""
    pictures = [Image.effect_noise((size_px, size_px), 60 + i).convert("RGB") for i in range(PICTURES)]
    examples = [Example(picture, CAPTION, None, f"{i}.png") for i, picture in enumerate(pictures)]
    events = teach(model, [TrainingSubject("zwx", "man", "zwx", examples)], recipe)
    yield from (event for event in events if isinstance(event, Progress) and event.stage == TEACHING)


def plain(model: Model, recipe: Recipe, size_px: int) -> Iterator[object]:
    """diffusers' train_dreambooth_lora_sdxl.py in short: peft's layers, AdamW, autocast, clipped gradients."""
    unet, device = model.unet, model.device
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(ATTENTION)))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    if recipe.gradient_checkpointing:
        unet.train()
        unet.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=1e-2)
    text, (h, w) = model.encode_text(CAPTION), model.latent_size((size_px, size_px))
    latents = torch.randn(PICTURES, 1, model.facts.latent_channels, h, w, device=device)
    added = None
    if text.pooled is not None:
        added = {"text_embeds": text.pooled, "time_ids": model.size_ids((size_px, size_px))}
    alphas = model.scheduler.alphas_cumprod.to(device)
    for step in range(recipe.steps):
        t, noise = torch.randint(len(alphas), (1,), device=device), torch.randn_like(latents[0])
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents[step % PICTURES] + (1 - a).sqrt() * noise
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


def timed(steps: Iterable[object], device: torch.device) -> tuple[float, float | None]:
    """(median seconds of a step after the first two, peak GiB on a GPU or None)."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    took, began = [], time.perf_counter()
    for _ in steps:
        if on_gpu:
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - began)
        began = time.perf_counter()
    return statistics.median(took[2:]), torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None


def measured(folder: Path, options: argparse.Namespace, device: torch.device, dtype: str) -> dict[str, Any]:
    """Both loops on one checkpoint, one after the other."""
    recipe = recipe_of(options.family, options.steps, device.type == "cuda")
    told: dict[str, Any] = {"seconds": {}, "peak_gib": {}, "gradient_checkpointing": recipe.gradient_checkpointing}
    for name, loop in (("diffusers", plain), ("costars", ours)):
        model = open_studio(device.type, dtype).model(str(folder))
        told["seconds"][name], told["peak_gib"][name] = timed(loop(model, recipe, options.size), device)
        del model
    told["over_diffusers"] = told["seconds"]["costars"] / told["seconds"]["diffusers"]
    return told


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="of which the first two warm up")
    options, device, dtype = asked(parser)
    if options.steps < 3:
        parser.error(f"--steps {options.steps}: want at least 3, of which two warm up")
    facts = facts_of(options, device, dtype)
    print(heading_of(facts))
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), options.family, options.tiny, options.size, device, dtype)
        told = measured(Path(folder), options, device, dtype)
    for loop, seconds in told["seconds"].items():
        peak = told["peak_gib"][loop]
        print(f"{loop}: {seconds:.3f} s a step{'' if peak is None else f', peak {peak:.1f} GiB'}")
    print(f"costars takes {told['over_diffusers']:.2f} x as long")
    if options.out:
        options.out.write_text(json.dumps({**facts, **told}, indent=2) + "\n")


if __name__ == "__main__":
    main()
