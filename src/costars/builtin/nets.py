"""What the world's own small networks share: their block of layers, and how their weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from costars.errors import ModelError

N = TypeVar("N", bound=nn.Module)


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Two convolutions, each with group norm and SiLU; the first may halve the picture."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


def loaded(net: N, weights: Path, what: str, device: torch.device) -> N:
    """The network with its shipped weights, ready to use. Raises ModelError if the file is missing or damaged."""
    try:
        net.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise ModelError(f"{what}: {weights.name} cannot be loaded ({line}); install costars again") from None
    return net.to(device).eval()
