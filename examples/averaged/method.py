"""Composable Diffusion (Liu et al. 2022, arXiv 2206.01714) with one adapter for each path."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from costars import Method, ResolvedScene, Step, denoise, make_sampler, member_adapter, member_path, one_adapter_per_row


def sample(resolved: ResolvedScene) -> Generator[Step, None, Tensor]:
    """Denoise one path for each member with the weighted mean of their noise."""
    model, members = resolved.model, resolved.cast
    adapters = {member.name: member_adapter(resolved, member) for member in members}
    with model.text_encoders_on_device():
        paths = [member_path(resolved, member, adapters[member.name]) for member in members]
    first = resolved.options.first_share if len(members) > 1 else 1.0
    others = (1 - first) / max(1, len(members) - 1)
    weights = torch.tensor([first] + [others] * (len(members) - 1), device=model.device, dtype=model.dtype)

    def combine(noise: Tensor) -> Tensor:
        return torch.einsum("p,pgchw->gchw", weights, noise)

    sampler = make_sampler(resolved)
    latent = sampler.noise(model)
    with model.unet_on_device(), one_adapter_per_row(model.unet, "unet.", adapters) as rows:
        for step in denoise(model, latent, paths, sampler, combine=combine, adapters=rows, stage="averaged"):
            latent = step.latent
            yield step
    return latent


METHOD = Method(sample=sample)
