"""Diffusion and attention losses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import interpolate

from costars.model.predict import Conditioning, NoiseSchedule, predict_noise

MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, arXiv 2303.09556, section 3.4


def noise_errors(
    unet: UNet2DConditionModel,
    schedule: NoiseSchedule,
    latents: Tensor,
    conditioning: Conditioning,
    generator: torch.Generator,
    *,
    snr_gamma: float | None = MIN_SNR_GAMMA,
    weights: Tensor | None = None,
    noise_offset: float = 0.0,
) -> Tensor:
    """(n,) mean squared error of each prediction at uniform timesteps, with min-SNR weighting unless snr_gamma is None.

    latents (n, c, h, w) are scaled. weights (n, 1, h, w) are the loss weights of the latent cells. noise_offset scales
    one random number per channel that is added to the noise (Guttenberg 2023). The generator is on the CPU, so that
    all devices draw the same numbers.
    """
    squared, t = squared_errors(unet, schedule, latents, conditioning, generator, noise_offset)
    errors = (squared if weights is None else squared * weights.to(squared.device)).mean(dim=(1, 2, 3))
    if snr_gamma is None:
        return errors
    snr = schedule.snr(t)
    return errors * snr.clamp(max=snr_gamma) / (snr + 1 if schedule.velocity else snr)


def squared_errors(
    unet: UNet2DConditionModel,
    schedule: NoiseSchedule,
    latents: Tensor,
    conditioning: Conditioning,
    generator: torch.Generator,
    noise_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(n, c, h, w) squared errors at uniform timesteps, and the timesteps (n,); arguments as in `noise_errors`.

    Generators with the same seed draw the same timesteps and noise, so that errors of different prompts can be
    compared.
    """
    device, count = latents.device, len(latents)
    t = torch.randint(len(schedule.alphas), (count,), generator=generator).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    if noise_offset:
        noise = noise + noise_offset * torch.randn((*latents.shape[:2], 1, 1), generator=generator).to(device)
    noisy, target = schedule.add_noise(latents, noise, t), schedule.target(latents, noise, t)
    predicted = predict_noise(unet, noisy, t, conditioning)
    return (predicted.float() - target).square(), t


def cell_weights(masks: Tensor, size: tuple[int, int], background: float) -> Tensor:
    """(n, 1, h, w) loss weights of latent cells: 1 inside the masks (n, 1, H, W), background outside, mean 1 per row.

    The mean of 1 makes small subjects train as fast as large ones (Mix-of-Show: background 0).
    """
    cover = interpolate(masks, size, mode="area")
    weights = background + (1 - background) * cover
    return weights / weights.mean(dim=(2, 3), keepdim=True).clamp_min(1e-6)


def attention_leak(maps: Mapping[int, Tensor], masks: Tensor, full_identity: bool) -> Tensor:
    """Mix-of-Show's attention regularization, summed over resolutions: attention of two words outside the mask.

    maps {queries: (b, 2, h, w)} are those of the two words, masks are (b, 1, H, W). The second word must match the
    whole mask with full_identity, else it only must not attend outside of it, as the first word.
    """
    total = masks.new_zeros(())
    for attention in maps.values():
        mask = interpolate(masks, attention.shape[-2:], mode="nearest")
        first, second = (max_normalized(attention[:, i]) for i in (0, 1))
        outside = mask[:, 0] == 0
        if not bool(outside.any()):
            continue
        total = total + first[outside].mean()
        total = total + ((second - mask[:, 0]).square().mean() if full_identity else second[outside].mean())
    return total


def max_normalized(maps: Tensor) -> Tensor:
    """Each map of (b, ..., h, w) divided by its maximum."""
    return maps / maps.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
