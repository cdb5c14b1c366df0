"""Trainable full weights of a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def trainable_weights(module: nn.Module, suffixes: tuple[str, ...] = ()) -> Iterator[dict[str, nn.Parameter]]:
    """Replace the weights of linear and convolution layers by trainable float32 copies {path} for the block.

    Only layers whose path ends in one of suffixes are trained; without suffixes all are. Norms and biases are not
    trained: an adapter of a concept can only change matrices and kernels.
    """
    originals: list[tuple[nn.Linear | nn.Conv2d, Any]] = []
    try:
        copies: dict[str, nn.Parameter] = {}
        for path, layer in module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and path.endswith(suffixes or ""):
                originals.append((layer, layer.weight))
                copies[path] = nn.Parameter(layer.weight.detach().to(torch.float32, copy=True))
                layer.weight = copies[path]
        yield copies
    finally:
        for layer, weight in originals:
            layer.weight = weight
        module.requires_grad_(False)
