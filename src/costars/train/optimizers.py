"""Optimizers by name, and the learning rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from costars.errors import TrainError
from costars.train.recipe import Recipe

ParameterGroups = list[dict[str, Any]]


def _adamw(groups: ParameterGroups, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=(0.9, recipe.adam_beta2))


def _adafactor(groups: ParameterGroups, recipe: Recipe) -> torch.optim.Optimizer:
    """Adafactor at the given learning rates: rates relative to a layer's scale are zero for a new LoRA layer."""
    from transformers.optimization import Adafactor

    return Adafactor(groups, scale_parameter=False, relative_step=False, warmup_init=False)


def _adamw8bit(groups: ParameterGroups, recipe: Recipe) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise TrainError(
            "optimizer adamw8bit: needs bitsandbytes; pip install 'costars[train8bit]', or use adafactor"
        ) from None
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, betas=(0.9, recipe.adam_beta2))
    return optimizer


OPTIMIZERS: Mapping[str, Callable[[ParameterGroups, Recipe], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "adamw8bit": _adamw8bit,
}


def make_optimizer(groups: ParameterGroups, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer; each group keeps its learning rate as initial_lr."""
    return OPTIMIZERS[recipe.optimizer]([group | {"initial_lr": group["lr"]} for group in groups], recipe)


def lr_factor(step: int, recipe: Recipe) -> float:
    """Factor of the learning rates at a step: linear warmup, constant, linear decay over the last fraction."""
    warmup = (step + 1) / recipe.lr_warmup_steps if recipe.lr_warmup_steps else 1.0
    decay_steps = recipe.steps * recipe.lr_decay_fraction
    decay = (recipe.steps - step) / decay_steps if decay_steps else 1.0
    return min(1.0, warmup, decay)
