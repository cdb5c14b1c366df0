"""Numeric precision of a training run."""

from __future__ import annotations

from typing import Literal

import torch

from costars.errors import TrainError
from costars.model.model import Model
from costars.model.precision import has_bf16_units
from costars.train.recipe import Recipe


def resolve_precision(recipe: Recipe, model: Model) -> Literal["bf16", "fp32"]:
    """The recipe's precision; auto is bf16 on devices with bf16 units and for models in half precision.

    Raises TrainError for fp32 with a model in half precision.
    """
    is_half = model.dtype in (torch.bfloat16, torch.float16)
    if recipe.precision == "auto":
        return "bf16" if is_half or has_bf16_units(model.device) else "fp32"
    if recipe.precision == "fp32" and is_half:
        kind = str(model.dtype).removeprefix("torch.")
        raise TrainError(f"precision=fp32: the model is in {kind}; load it with --dtype float32, or set precision=bf16")
    return recipe.precision
