"""How a VAE's latents are scaled for the UNet, as the VAE's configuration states it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def scale_latents(latents: Tensor, config: Mapping[str, Any]) -> Tensor:
    """(n, c, h, w) from the VAE's encoder as the UNet reads them: (latents - mean) * scaling_factor / std.

    config is the VAE's; mean and std are its latents_mean and latents_std, 0 and 1 where it has none.
    """
    scaling = float(config["scaling_factor"])
    if config["latents_mean"] is None:
        return latents * scaling
    mean, std = _mean_and_std(config, latents)
    return (latents - mean) * scaling / std


def unscale_latents(latents: Tensor, config: Mapping[str, Any]) -> Tensor:
    """(n, c, h, w) of the UNet as the VAE's decoder reads them; the inverse of `scale_latents`."""
    scaling = float(config["scaling_factor"])
    if config["latents_mean"] is None:
        return latents / scaling
    mean, std = _mean_and_std(config, latents)
    return latents * std / scaling + mean


def _mean_and_std(config: Mapping[str, Any], like: Tensor) -> tuple[Tensor, Tensor]:
    """Both (1, c, 1, 1)."""
    mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1).to(like) for key in ("latents_mean", "latents_std"))
    return mean, std
