"""Reads full layer weights: Custom Diffusion's keys and values, and those in files written by costars."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from costars.concepts.dialects import WEIGHTS
from costars.concepts.dtypes import to_float
from costars.concepts.keys import module_path
from costars.errors import ConceptError

_AXES = (2, 4)  # of a linear layer and of a convolution
_CUSTOM_DIFFUSION = re.compile(
    r"(.*)\.processor(?:\.to_(q|k|v|out)_custom_diffusion(?:\.0)?\.(weight|bias))?"
)  # as diffusers writes it


def is_full_weight(key: str) -> bool:
    """Whether a key belongs to a layer's full weight."""
    return key.startswith(WEIGHTS) or _CUSTOM_DIFFUSION.fullmatch(key) is not None


def read_full_weights(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Read {module path: (out, in) or (out, in, kh, kw)} in the dtype of the file.

    Reads Custom Diffusion (Kumari et al. 2023, arXiv 2212.04488) as diffusers writes it, and files of costars.
    Raises ConceptError for a tensor that is not a supported weight.
    """
    weights = {}
    for key, stored in tensors.items():
        path = key.removeprefix(WEIGHTS) if key.startswith(WEIGHTS) else _module_path(key, source)
        tensor = to_float(stored)
        if tensor.ndim not in _AXES or not tensor.isfinite().all():
            shape = tuple(tensor.shape)
            raise ConceptError(
                f"{source}: {key!r} is not a finite weight of 2 or 4 axes (shape {shape}); fetch the file again"
            )
        weights[path] = tensor
    return weights


def to_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the keys of costars' files."""
    return {f"{WEIGHTS}{path}": weight for path, weight in weights.items()}


def _module_path(key: str, source: str) -> str:
    match = _CUSTOM_DIFFUSION.fullmatch(key)
    stem, layer, kind = match.groups() if match else (None, None, None)
    path = module_path(f"{stem}.to_{layer}") if layer else None
    if path is None or kind == "bias":
        raise ConceptError(
            f"{source}: contains {key!r}, which is not supported; train only keys and values of cross-attention"
        )
    return path
