"""Pictures of the class, so that the model does not forget the others: its own (DreamBooth, section 3.3), or given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from costars.model.model import Model
from costars.model.prompt_weighting import unemphasised
from costars.model.text_encoder import NOTHING_LEARNED
from costars.sample.loop import denoise, sampler
from costars.train.checkpoint import load, save
from costars.train.data.images import Example
from costars.train.data.latents import Batch, LatentDataset, encode_examples
from costars.train.recipes import Recipe
from costars.types import DenoisingPath, LearnedWords

# Ours: diffusers' scripts leave both to the pipeline, which takes 50 steps, and 7.5 for SD 1.5, 5 for SDXL.
INFERENCE_STEPS = 30
GUIDANCE_SCALE = 5.0


def sample_latent(model: Model, prompt: str, seed: int, learned: LearnedWords = NOTHING_LEARNED) -> Tensor:
    """(1, c, h, w) the latent of one picture by the model as it now is, layers in training included."""
    plan = sampler(model.scheduler, INFERENCE_STEPS, model.device, model.facts.size_px, GUIDANCE_SCALE, seed=seed)
    # What is in training is in float32, also where the model is not.
    with torch.autocast(model.device.type, model.dtype, enabled=model.dtype in (torch.bfloat16, torch.float16)):
        path = DenoisingPath("global", model.encode_text(prompt, learned=learned), model.encode_text(""))
        *_, step = denoise(model, plan.noise(model), [path], plan)
    return step.latent


def generate_class_latents(
    model: Model, prompts: Sequence[str], count: int, seed: int, kept: Path | None
) -> Iterator[Tensor]:
    """(1, c, h, w) of so many pictures, the prompts one after the other; those kept in a file are not drawn again.

    Pictures of another model, of other prompts or another seed are no use, and drawn anew.
    """
    said = {"base_sha256": model.facts.sha256, "seed": str(seed), "prompts": json.dumps(list(prompts))}
    found, facts = load(kept) if kept is not None and kept.exists() else ({}, said)
    found = found if facts == said else {}
    try:
        for i in range(count):
            key = f"{i}"
            if key not in found:
                found[key] = sample_latent(model, unemphasised(prompts[i % len(prompts)]), seed + i).float().cpu()
            yield found[key].to(model.device)
    finally:
        if kept is not None and PartialState().is_main_process:
            with suppress(OSError):  # they can be drawn again, and whatever else ends this must be told
                save(kept, found, said)


def encode_class_images(model: Model, examples: Sequence[Example], recipe: Recipe, first: int) -> tuple[LatentDataset, tuple[str, ...]]:
    """Real pictures of the class and their captions, numbered from first on (Custom Diffusion, arXiv 2212.04488)."""
    said = tuple(dict.fromkeys(example.caption or "" for example in examples))
    number = [first + said.index(example.caption or "") for example in examples]
    found = encode_examples(
        model,
        examples,
        flip_augmentation=recipe.flip_augmentation,
        max_aspect_ratio=recipe.max_aspect_ratio,
        size_conditioning=recipe.size_conditioning,
    )
    return LatentDataset([replace(b, captions=tuple(number[i] for i in b.captions)) for b in found.buckets]), said


def batch_class_latents(model: Model, latents: Sequence[Tensor], prompts: int, first: int) -> LatentDataset:
    """Drawn class pictures as a recipe trains on them; their captions are numbered from first on."""
    captions = tuple(first + i % prompts for i in range(len(latents)))
    size_ids = model.size_ids(model.facts.size_px).expand(len(latents), 6)
    return LatentDataset([Batch(torch.cat(list(latents)), captions, size_ids)])
