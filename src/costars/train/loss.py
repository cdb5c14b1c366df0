"""The noise-prediction loss that every recipe shares."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, arXiv 2303.09556, section 3.4


def noise_loss(
    unet: UNet2DConditionModel,
    alphas_cumprod: Tensor,
    latents: Tensor,
    text: tuple[Tensor, Tensor | None],
    size_px: int,
    generator: torch.Generator,
    gamma: float | None = MIN_SNR_GAMMA,
    weights: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the predicted noise at uniform timesteps, weighted by min-SNR unless gamma is None.

    weights (n, 1, h, w) say how much each cell counts, 1 on average.
    latents (n, c, h, w) are scaled, text is (tokens (n, t, d), pooled (n, d) or None), the picture
    is square. Randomness comes from the generator on the CPU, so that every device sees the same.
    """
    device, count = latents.device, len(latents)
    t = torch.randint(len(alphas_cumprod), (count,), generator=generator).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    alphas = alphas_cumprod.to(device)[t]
    a = alphas.view(-1, 1, 1, 1)
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    tokens, pooled = text
    size_ids = torch.tensor([size_px, size_px, 0, 0, size_px, size_px], device=device).expand(count, 6)
    added = None if pooled is None else {"text_embeds": pooled, "time_ids": size_ids}
    predicted = unet(noisy, t, tokens, added_cond_kwargs=added).sample
    squared = (predicted.float() - noise).square()
    error = (squared if weights is None else squared * weights.to(device)).mean(dim=(1, 2, 3))
    if gamma is None:
        return error.mean()
    snr = alphas / (1 - alphas)
    return (error * snr.clamp(max=gamma) / snr).mean()
