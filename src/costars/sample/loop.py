"""The loop: one latent, several paths, one UNet call a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from costars.model.families import attention_layers
from costars.model.lora import RowAdapters
from costars.model.model import Model
from costars.model.offload import MicroBatcher
from costars.sample.attention_processor import Moment, attention_rule, plain
from costars.sample.batch import batch_of
from costars.types import AttentionRule, ControlNet, DenoisingPath, Step

Combine = Callable[[Tensor], Tensor]  # (p, g, c, h, w) of the paths that are not replays -> (g, c, h, w)


@dataclass(frozen=True)
class Sampler:
    """A scheduler set to a number of steps, to take those from start up to stop, and how they are taken.

    size_px is (width, height); guidance_scale is that of classifier-free guidance.
    """

    scheduler: Any
    timesteps: Tensor
    size_px: tuple[int, int]
    guidance_scale: float
    seed: int
    start: int
    stop: int

    def noise(self, model: Model) -> Tensor:
        """(1, c, h, w) where the first step begins."""
        return model.initial_noise(self.size_px, self.seed) * self.scheduler.init_noise_sigma

    def step(self, noise: Tensor, index: int, latent: Tensor) -> Tensor:
        """The latent after step index; a scheduler that adds noise draws it from seed and index."""
        extra = {}
        if "generator" in signature(self.scheduler.step).parameters:
            extra["generator"] = torch.Generator("cpu").manual_seed(self.seed + 1_000_003 * (index + 1))
        previous: Tensor = self.scheduler.step(noise, self.timesteps[index], latent, **extra).prev_sample
        return previous


def sampler(
    scheduler: Any,
    steps: int,
    device: torch.device,
    size_px: tuple[int, int],
    guidance_scale: float,
    *,
    seed: int = 0,
    start: int = 0,
) -> Sampler:
    """A sampler with a private copy of a diffusers scheduler, ready to take the steps from start on."""
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    timesteps = scheduler.timesteps
    return Sampler(scheduler, timesteps, size_px, guidance_scale, seed, start, len(timesteps))


def only(noise: Tensor) -> Tensor:
    """The noise of the one path there is."""
    (single,) = noise
    return single


def denoise(
    model: Model,
    latent: Tensor,
    paths: Sequence[DenoisingPath],
    steps: Sampler,
    *,
    combine: Combine = only,
    rule: AttentionRule | None = None,
    adapters: RowAdapters | None = None,
    controls: Sequence[ControlNet] = (),
    stage: str = "",
) -> Iterator[Step]:
    """Denoise along all paths at once; yields after each step.

    latent is (1, c, h, w) at step steps.start. Each step is one UNet call over all rows (split where
    model.max_rows or the memory wants it), combine on the predicted noise of both halves (OMG, Eq. 6), guidance
    (Ho & Salimans 2022), and one scheduler step. Between steps the model is as it was found.
    """
    batch, micro_batcher = batch_of(model, paths, steps.size_px), MicroBatcher(model.max_rows, model.device)
    asked = rule if rule is not None or batch.layers == 1 else plain
    layers = [] if asked is None else attention_layers(model.unet)
    moment, of, used = Moment(), len(steps.timesteps), 0
    moment.layers = batch.layers
    for i in range(steps.start, steps.stop):
        moment.progress, moment.step = i / of, i
        with torch.no_grad(), nullcontext() if asked is None else attention_rule(layers, asked, moment):
            t = steps.timesteps[i]
            sample = steps.scheduler.scale_model_input(batch.samples(latent, i), t)
            noise = batch.noise(model, sample, t, moment, adapters, controls, micro_batcher)
            latent = steps.step(_guided(combine(batch.by_path(noise)), steps.guidance_scale), i, latent)
        used += len(batch.rows)
        yield Step(stage, i, of, latent, used, micro_batcher.size(len(batch.rows)))


def _guided(noise: Tensor, scale: float) -> Tensor:
    """(g, c, h, w) to (1, c, h, w): uncond + scale * (cond - uncond)."""
    if len(noise) == 1:
        return noise
    uncond, cond = noise
    return (uncond + scale * (cond - uncond))[None]
