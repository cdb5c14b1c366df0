"""Schedulers with memory: stage 2 continues from the state in which stage 1 was at the start step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from costars.model.schedulers import count_warmup_steps
from costars.sample.loop import Sampler
from costars.types import SchedulerState


def save_state(sampler: Sampler, step: int, device: torch.device) -> SchedulerState | None:
    """The state of a sampler that has taken the steps before this one; None if its scheduler has no memory."""
    if not count_warmup_steps(sampler.scheduler, step):
        return None
    return SchedulerState(copy.deepcopy(sampler.scheduler), step, device)


def restore_state(sampler: Sampler, state: SchedulerState | None, device: torch.device) -> Sampler | None:
    """The sampler, which begins at sampler.start, with a copy of the state; None if the state is of other steps."""
    if state is None or (state.step, state.device) != (sampler.start, device) or not _is_alike(sampler, state):
        return None
    return replace(sampler, scheduler=copy.deepcopy(state.scheduler))


def _is_alike(sampler: Sampler, state: SchedulerState) -> bool:
    ours, theirs = sampler.scheduler, state.scheduler
    same_steps = torch.equal(ours.timesteps, theirs.timesteps)
    return type(ours) is type(theirs) and same_steps and _settings(ours) == _settings(theirs)


def _settings(scheduler: Any) -> Mapping[str, Any]:
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
