"""Optimizers by name, and how a recipe's rates rise and fall."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from costars.errors import TrainError
from costars.train.recipes import Recipe

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=(0.9, recipe.adam_beta2))


def _adafactor(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """At the rates that are given: not relative to a layer's scale, which is zero where an adapter begins."""
    from transformers.optimization import Adafactor

    return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False)


def _adamw8bit(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise TrainError(
            "optimizer adamw8bit: needs bitsandbytes; pip install 'costars[train8bit]', or use adafactor"
        ) from None
    made: torch.optim.Optimizer = AdamW8bit(groups, betas=(0.9, recipe.adam_beta2))
    return made


OPTIMIZERS: Mapping[str, Callable[[Groups, Recipe], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "adamw8bit": _adamw8bit,
}


def optimizer_of(groups: Groups, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer; each group remembers the rate that it was given as initial_lr."""
    return OPTIMIZERS[recipe.optimizer]([group | {"initial_lr": group["lr"]} for group in groups], recipe)


def rate_at(step: int, recipe: Recipe) -> float:
    """By how much the rates are multiplied at a step: up in the first steps, down in a line in the last share."""
    up = (step + 1) / recipe.lr_warmup_steps if recipe.lr_warmup_steps else 1.0
    falling = recipe.steps * recipe.lr_decay_fraction
    down = (recipe.steps - step) / falling if falling else 1.0
    return min(1.0, up, down)
