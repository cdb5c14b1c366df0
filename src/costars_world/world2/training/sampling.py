"""Pictures drawn by the base while it trains, on contact sheets beside the rendered truth."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from costars_world.world2.training.autoencoder import LATENT_CHANNELS
from costars_world.world2.training.base import size_ids
from costars_world.world2.training.base_training import BaseRun
from costars_world.world2.training.batches import Rendered, held_out_slots, to_bytes, to_pixels
from costars_world.world2.training.plan import SHAPES
from costars_world.world2.training.tokenizer import CaptionEncoder

WIDE, WIDE_FIGURES = 2, 5  # index into SHAPES, and figures in its prompts
COLUMNS = 12  # squares in a row; half as many wide ones


@dataclass(frozen=True)
class SheetRecipe:
    """How many prompts are drawn at 128 x 128 and at 256 x 128, and how."""

    squares: int = 24
    wides: int = 12
    steps: int = 25
    guidance: tuple[float, ...] = (1.5, 3.0, 5.0)


@torch.no_grad()
def sample(run: BaseRun, vae: AutoencoderKL, ids: Tensor, shape: int, guidance: float, steps: int) -> NDArray[np.uint8]:
    """(n, h, w, 3) pictures for token ids (n, 2, t), each with the noise of its place in the batch."""
    scheduler = copy.deepcopy(run.base.scheduler)
    device = ids.device
    scheduler.set_timesteps(steps, device=device)
    width, height = SHAPES[shape]
    generator = torch.Generator(device).manual_seed(0)
    size = (len(ids), LATENT_CHANNELS, height // 8, width // 8)
    latents = torch.randn(size, generator=generator, device=device) * scheduler.init_noise_sigma
    both = torch.cat([run.empty[None].expand_as(ids), ids])
    sizes = size_ids((width, height), device).expand(len(both), 6)
    dtype = next(run.denoiser.parameters()).dtype
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(torch.cat([latents, latents]), t).to(dtype)
        without, with_text = run.denoiser(seen, t.expand(len(both)), both, sizes).float().chunk(2)
        latents = scheduler.step(without + guidance * (with_text - without), t, latents).prev_sample
    return to_bytes(vae.decode(latents.to(vae.dtype) / vae.config["scaling_factor"]).sample)


def draw_sheet(
    run: BaseRun, vae: AutoencoderKL, rendered: Rendered, captions: CaptionEncoder, recipe: SheetRecipe
) -> Image.Image:
    """Held-out prompts: for each block of prompts a row rendered, a row decoded, then a row per guidance scale."""
    strips: list[NDArray[np.uint8]] = []
    slots = held_out_slots(rendered.plan, rendered.store)
    counts = rendered.store.figure_counts
    full = slots[WIDE][counts[slots[WIDE]] == WIDE_FIGURES]
    blocks = ((0, slots[0][: recipe.squares], COLUMNS), (WIDE, full[: recipe.wides], COLUMNS // 2))
    for shape, chosen, columns in blocks:
        if not len(chosen):
            continue
        ids = torch.from_numpy(captions([rendered.store.caption(s) for s in chosen]).transpose(1, 0, 2).copy())
        images = rendered.images(shape, chosen)
        rows = [images.numpy(), reconstruct(vae, images)]
        rows += [sample(run, vae, ids.long().to(vae.device), shape, g, recipe.steps) for g in recipe.guidance]
        for start in range(0, len(chosen), columns):
            strips += [_strip(row[start : start + columns], columns) for row in rows]
    return Image.fromarray(np.concatenate(strips))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> NDArray[np.uint8]:
    """(n, h, w, 3) pictures through the autoencoder."""
    mean = vae.encode(to_pixels(images.to(vae.device))).latent_dist.mean
    return to_bytes(vae.decode(mean).sample)


def _strip(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Pictures side by side, filled up with white to so many columns."""
    missing = columns - len(images)
    if missing:
        images = np.concatenate([images, np.full((missing, *images.shape[1:]), 255, np.uint8)])
    return np.concatenate(list(images), axis=1)
