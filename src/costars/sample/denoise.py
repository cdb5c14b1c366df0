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

from costars.model.adapters import RowAdapters
from costars.model.model import Model
from costars.sample.attention import Moment, attention_layers, attention_rule
from costars.types import AttentionRule, Path, Step, Text

Combine = Callable[[Tensor], Tensor]  # (p, g, c, h, w) of the paths that are not replays -> (g, c, h, w)


@dataclass(frozen=True)
class Row:
    """One row of the batch: a path's text (or its negative text) on its latent."""

    path: Path
    text: Text
    conditional: bool


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
            extra["generator"] = torch.Generator(latent.device).manual_seed(self.seed + 1_000_003 * (index + 1))
        previous: Tensor = self.scheduler.step(noise, self.timesteps[index], latent, **extra).prev_sample
        return previous

    @property
    def history(self) -> int:
        """How many earlier steps a multistep scheduler wants to have seen."""
        return int(self.scheduler.config.get("solver_order", 1)) - 1


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


def rows_of(paths: Sequence[Path]) -> list[Row]:
    """The batch's rows, conditional ones first: a replayed layout and the global path stay side by side."""
    conditional = [Row(p, p.text, True) for p in paths]
    return [*conditional, *(Row(p, p.negative, False) for p in paths if p.negative is not None)]


def only(noise: Tensor) -> Tensor:
    """The noise of the one path there is."""
    (single,) = noise
    return single


def denoise(
    model: Model,
    latent: Tensor,
    paths: Sequence[Path],
    steps: Sampler,
    *,
    combine: Combine = only,
    rule: AttentionRule | None = None,
    adapters: RowAdapters | None = None,
    stage: str = "",
) -> Iterator[Step]:
    """Denoise along all paths at once; yields after each step.

    latent is (1, c, h, w) at step steps.start. Each step is one UNet call over all rows (split by
    model.max_rows), combine on the predicted noise of both halves (OMG, Eq. 6), guidance
    (Ho & Salimans 2022), and one scheduler step. Between steps the model is as it was found.
    """
    rows = rows_of(paths)
    inputs = _inputs(model, rows, steps.size_px)
    layers = [] if rule is None else attention_layers(model.unet)
    moment, of, used = Moment(), len(steps.timesteps), 0
    for i in range(steps.start, steps.stop):
        moment.progress = i / of
        with torch.no_grad(), nullcontext() if rule is None else attention_rule(layers, rule, moment):
            sample = torch.cat([latent if r.path.replay is None else r.path.replay[i : i + 1] for r in rows])
            sample = steps.scheduler.scale_model_input(sample, steps.timesteps[i])
            noise = _predict(model, sample, steps.timesteps[i], inputs, rows, moment, adapters)
            combined = combine(_by_path(noise, rows))
            latent = steps.step(_guided(combined, steps.guidance_scale), i, latent)
        used += len(rows)
        yield Step(stage, i, of, latent, used)


def _inputs(model: Model, rows: Sequence[Row], size_px: tuple[int, int]) -> dict[str, Tensor]:
    return {
        "tokens": torch.cat([r.text.tokens for r in rows]),
        "pooled": torch.cat([r.text.pooled for r in rows]),
        "size_ids": model.size_ids(size_px).expand(len(rows), -1),
    }


def _predict(
    model: Model,
    sample: Tensor,
    t: Tensor,
    inputs: dict[str, Tensor],
    rows: Sequence[Row],
    moment: Moment,
    adapters: RowAdapters | None,
) -> Tensor:
    size = model.max_rows or len(rows)
    noise = []
    for first in range(0, len(rows), size):
        here = slice(first, min(first + size, len(rows)))
        moment.rows = here
        added = {"text_embeds": inputs["pooled"][here], "time_ids": inputs["size_ids"][here]}
        with nullcontext() if adapters is None else adapters.on([r.path.adapter for r in rows[here]]):
            noise.append(model.unet(sample[here], t, inputs["tokens"][here], added_cond_kwargs=added).sample)
    return torch.cat(noise)


def _by_path(noise: Tensor, rows: Sequence[Row]) -> Tensor:
    """(rows, c, h, w) to (p, g, c, h, w) in the paths' order, replays left out."""
    pairs: dict[int, dict[bool, Tensor]] = {}
    for row, value in zip(rows, noise, strict=True):
        if row.path.replay is None:
            pairs.setdefault(id(row.path), {})[row.conditional] = value
    return torch.stack([torch.stack([pair[half] for half in sorted(pair)]) for pair in pairs.values()])


def _guided(noise: Tensor, scale: float) -> Tensor:
    """(g, c, h, w) to (1, c, h, w): uncond + scale * (cond - uncond)."""
    if len(noise) == 1:
        return noise
    uncond, cond = noise
    return (uncond + scale * (cond - uncond))[None]
