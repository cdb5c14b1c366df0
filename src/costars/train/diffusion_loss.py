"""What a recipe makes smaller: the error of the predicted noise, and words that look elsewhere."""

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
    text: tuple[Tensor, Tensor | None],
    size_ids: Tensor,
    generator: torch.Generator,
    gamma: float | None = MIN_SNR_GAMMA,
    weights: Tensor | None = None,
    offset: float = 0.0,
) -> Tensor:
    """(n,) mean squared error of each prediction at uniform timesteps, weighted by min-SNR unless gamma is None.

    latents (n, c, h, w) are scaled, text is (tokens (n, t, d), pooled (n, d) or None), size_ids (n, 6) or
    (1, 6) SDXL's. weights (n, 1, h, w) say how much each cell counts; offset is added to each channel's noise
    as one random number (Guttenberg 2023). Randomness comes from the generator on the CPU, so that every
    device sees the same.
    """
    squared, t = squared_errors(unet, schedule, latents, text, size_ids, generator, offset)
    errors = (squared if weights is None else squared * weights.to(squared.device)).mean(dim=(1, 2, 3))
    if gamma is None:
        return errors
    snr = schedule.snr(t)
    return errors * snr.clamp(max=gamma) / (snr + 1 if schedule.velocity else snr)


def squared_errors(
    unet: UNet2DConditionModel,
    schedule: NoiseSchedule,
    latents: Tensor,
    text: tuple[Tensor, Tensor | None],
    size_ids: Tensor,
    generator: torch.Generator,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(n, c, h, w) squared errors at uniform timesteps, and (n,) these timesteps; arguments as `noise_errors`.

    A generator of the same seed draws the same timesteps and noise, so that texts can be held against each other.
    """
    device, count = latents.device, len(latents)
    t = torch.randint(len(schedule.alphas), (count,), generator=generator).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    if offset:
        noise = noise + offset * torch.randn((*latents.shape[:2], 1, 1), generator=generator).to(device)
    noisy, target = schedule.add_noise(latents, noise, t), schedule.target(latents, noise, t)
    predicted = predict_noise(unet, noisy, t, Conditioning(*text, size_ids))
    return (predicted.float() - target).square(), t


def cell_weights(masks: Tensor, size: tuple[int, int], outside: float) -> Tensor:
    """(n, 1, h, w) how much each latent cell counts: 1 where the mask (n, 1, H, W) covers it, outside where not.

    On average 1, so that a small figure is learned as fast as a large one (Mix-of-Show: outside 0).
    """
    cover = interpolate(masks, size, mode="area")
    weights = outside + (1 - outside) * cover
    return weights / weights.mean(dim=(2, 3), keepdim=True).clamp_min(1e-6)


def strayed(maps: Mapping[int, Tensor], masks: Tensor, full_identity: bool) -> Tensor:
    """Mix-of-Show's attention regulariser: words that look where their concept is not, over all resolutions.

    maps {queries: (b, 2, h, w)} are of the two words, masks (b, 1, H, W). The first word must not look
    outside; the second looks at all of the mask (full_identity), or must not look outside either.
    """
    total = masks.new_zeros(())
    for found in maps.values():
        mask = interpolate(masks, found.shape[-2:], mode="nearest")
        own, kind = (peaked(found[:, i]) for i in (0, 1))
        outside = mask[:, 0] == 0
        if not bool(outside.any()):
            continue
        total = total + own[outside].mean()
        total = total + ((kind - mask[:, 0]).square().mean() if full_identity else kind[outside].mean())
    return total


def peaked(maps: Tensor) -> Tensor:
    """Each of (b, ..., h, w) divided by its own highest value."""
    return maps / maps.amax(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
