"""The denoising loop: one latent, several paths, one UNet call per step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from costars.model.families import attention_layers
from costars.model.lora import RowAdapters
from costars.model.model import Model
from costars.model.offload import MicroBatcher
from costars.sample.attention_processor import stock_attention
from costars.sample.batch import make_batch
from costars.sample.row_predictor import RowPredictor
from costars.types import AttentionRule, ControlNet, DenoisingPath, Step

Combine = Callable[[Tensor], Tensor]  # (p, g, c, h, w) of the paths that are not replays -> (g, c, h, w)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A scheduler set to a number of steps, and which of them are taken: start up to stop.

    timesteps are on the CPU, where a scheduler reads them without waiting for the device; device_timesteps are the
    same for the UNet. size_px is (width, height); guidance_scale is that of classifier-free guidance.
    """

    scheduler: Any
    timesteps: Tensor
    device_timesteps: Tensor
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


def prepare_sampler(
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
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    timesteps = scheduler.timesteps
    return Sampler(
        scheduler=scheduler,
        timesteps=timesteps,
        device_timesteps=timesteps.to(device),
        size_px=size_px,
        guidance_scale=guidance_scale,
        seed=seed,
        start=start,
        stop=len(timesteps),
    )


def single_path(noise: Tensor) -> Tensor:
    """The noise of the only path."""
    (single,) = noise
    return single


def denoise(
    model: Model,
    latent: Tensor,
    paths: Sequence[DenoisingPath],
    sampler: Sampler,
    *,
    combine: Combine = single_path,
    rule: AttentionRule | None = None,
    adapters: RowAdapters | None = None,
    controls: Sequence[ControlNet] = (),
    stage: str = "",
    micro_batcher: MicroBatcher | None = None,
) -> Iterator[Step]:
    """Denoise along all paths at once; yields after each step.

    latent is (1, c, h, w) at step sampler.start. Each step is one UNet call over all rows (several where
    model.max_rows or the memory asks for it), combine on the predicted noise of both halves (OMG, Eq. 6),
    classifier-free guidance (Ho & Salimans 2022), and one scheduler step. All but the networks compute in the number
    format of the latent, at least float32. Between steps the model is unchanged. micro_batcher is shared by the parts
    of a denoising that is done in several.
    """
    batch = make_batch(model, paths, sampler.size_px)
    rule = stock_attention if rule is None and batch.layers > 1 else rule
    predictor = RowPredictor(
        model=model,
        batch=batch,
        layers=[] if rule is None else attention_layers(model.unet),
        rule=rule,
        adapters=adapters,
        controls=controls,
        micro_batcher=micro_batcher or MicroBatcher(model.max_rows, model.device),
    )
    of = len(sampler.timesteps)
    for i in range(sampler.start, sampler.stop):
        with torch.no_grad():
            latents = sampler.scheduler.scale_model_input(batch.latents(latent, i), sampler.timesteps[i])
            noise = predictor.predict(latents, sampler.device_timesteps[i], i, i / of)
            latent = sampler.step(_guide(combine(batch.by_path(noise)), sampler.guidance_scale), i, latent)
        yield Step(stage, i, of, latent, predictor.rows_used, predictor.rows_per_call)


def _guide(noise: Tensor, scale: float) -> Tensor:
    """(g, c, h, w) to (1, c, h, w): uncond + scale * (cond - uncond)."""
    if len(noise) == 1:
        return noise
    uncond, cond = noise
    return (uncond + scale * (cond - uncond))[None]
