"""The corpus as the autoencoder's latents: encoded once, kept on disk beside the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from costars.model.precision import has_bf16_units
from costars_world.training import dataset as corpus
from costars_world.training.vae import pixels

BATCH = 20


@torch.no_grad()
def moments(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of (n, h, w, 3) uint8 pictures' latents, (n, c, h / 8, w / 8) each."""
    means, deviations = [], []
    for start in range(0, len(images), BATCH):
        with torch.autocast(vae.device.type, torch.bfloat16, enabled=has_bf16_units(vae.device)):
            posterior = vae.encode(pixels(images[start : start + BATCH]).to(vae.device)).latent_dist
        means.append(posterior.mean.float().cpu())
        deviations.append(posterior.std.float().cpu())
    return torch.cat(means), torch.cat(deviations)


def encode(vae: AutoencoderKL, pictures: Path, folder: Path, count: int) -> Iterator[int]:
    """Encode the rendered pictures that the folder lacks, scaled as the base sees them; yields how many are there."""
    folder.mkdir(parents=True, exist_ok=True)
    scale = vae.config["scaling_factor"]
    for start in range(0, count, corpus.CHUNK):
        target = _chunk(folder, start)
        if not target.exists():
            mean, std = moments(vae, torch.from_numpy(corpus.load_images(pictures, start)))
            partial = target.with_suffix(".part")
            halves = {"mean": mean * scale, "std": std * scale}
            save_file({k: v.half().contiguous() for k, v in halves.items()}, partial)
            partial.rename(target)
        yield start + corpus.CHUNK


def load(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the first pictures' latents, scaled."""
    chunks = [load_file(_chunk(folder, start)) for start in range(0, count, corpus.CHUNK)]
    return torch.cat([c["mean"] for c in chunks]), torch.cat([c["std"] for c in chunks])


def _chunk(folder: Path, start: int) -> Path:
    return folder / f"{start:07d}.safetensors"
