"""The dtypes that tensors of concepts are kept in."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def to_float(tensor: Tensor) -> Tensor:
    """A tensor in half precision as it is, and any other (float8, float64, an integer) as float32."""
    return tensor if tensor.dtype in _HALF else tensor.to(torch.float32)
