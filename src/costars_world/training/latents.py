"""The rendered dataset as latents of the autoencoder: encoded once and stored beside the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from costars.model.precision import has_bf16_units
from costars_world.training import dataset
from costars_world.training.vae import images_to_tensor

BATCH_SIZE = 20


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Encode images (n, h, w, 3) uint8 to the mean and standard deviation of their latents, (n, c, h / 8, w / 8)."""
    means, deviations = [], []
    for start in range(0, len(images), BATCH_SIZE):
        with torch.autocast(vae.device.type, torch.bfloat16, enabled=has_bf16_units(vae.device)):
            posterior = vae.encode(images_to_tensor(images[start : start + BATCH_SIZE]).to(vae.device)).latent_dist
        means.append(posterior.mean.float().cpu())
        deviations.append(posterior.std.float().cpu())
    return torch.cat(means), torch.cat(deviations)


def encode_dataset(vae: AutoencoderKL, pictures: Path, folder: Path, count: int) -> Iterator[int]:
    """Encode the pictures missing in the folder, scaled by scaling_factor; yields the number encoded so far."""
    folder.mkdir(parents=True, exist_ok=True)
    scale = vae.config["scaling_factor"]
    for start in range(0, count, dataset.CHUNK_SIZE):
        target = _chunk_path(folder, start)
        if not target.exists():
            mean, std = encode_images(vae, torch.from_numpy(dataset.load_images(pictures, start)))
            partial = target.with_suffix(".part")
            scaled = {"mean": mean * scale, "std": std * scale}
            save_file({k: v.half().contiguous() for k, v in scaled.items()}, partial)
            partial.rename(target)
        yield start + dataset.CHUNK_SIZE


def load(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Load mean and standard deviation of the first pictures' scaled latents."""
    chunks = [load_file(_chunk_path(folder, start)) for start in range(0, count, dataset.CHUNK_SIZE)]
    return torch.cat([c["mean"] for c in chunks]), torch.cat([c["std"] for c in chunks])


def _chunk_path(folder: Path, start: int) -> Path:
    return folder / f"{start:07d}.safetensors"
