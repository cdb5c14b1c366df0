"""The convolution block and the weight loading shared by the built-in networks."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from costars.errors import ModelError, to_one_line

N = TypeVar("N", bound=nn.Module)


def conv_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Two 3 x 3 convolutions, each followed by group norm and SiLU; the first has the stride."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


def load_weights(net: N, weights: Path, name: str, device: torch.device) -> N:
    """Load a network's shipped weights and return it on the device, in eval mode.

    Raises ModelError if the file is missing or damaged.
    """
    try:
        net.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        line = to_one_line(error)
        raise ModelError(f"{name}: {weights.name} cannot be loaded ({line}); reinstall costars") from None
    return net.to(device).eval()
