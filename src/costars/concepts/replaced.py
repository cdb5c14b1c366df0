"""Layers whose whole weight a file brings: Custom Diffusion's keys and values, and those that our own files hold."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from costars.concepts.names import module_path
from costars.errors import ConceptError

OURS = "weights."  # weights.<module path> in a file of ours
_KEY = re.compile(r"(.*)\.processor\.to_(q|k|v|out)_custom_diffusion(?:\.0)?\.(weight|bias)")


def is_replaced(key: str) -> bool:
    """Whether this is a layer's whole weight."""
    return key.startswith(OURS) or _KEY.fullmatch(key) is not None


def read_replaced(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """{module path: (out, in)} in float32, of Custom Diffusion (Kumari et al. 2023, arXiv 2212.04488) as diffusers
    writes it, or of a file of ours; raises ConceptError for what cannot be applied."""
    weights = {}
    for key, tensor in tensors.items():
        path = key.removeprefix(OURS) if key.startswith(OURS) else _path(key, source)
        if tensor.ndim != 2 or not tensor.isfinite().all():
            raise ConceptError(f"{source}: {key!r} is no finite matrix ({tuple(tensor.shape)}); fetch the file again")
        weights[path] = tensor.to(torch.float32)
    return weights


def _path(key: str, source: str) -> str:
    found = _KEY.fullmatch(key)
    assert found is not None
    stem, which, last = found.groups()
    path = module_path(f"{stem}.to_{which}")
    if path is None or last == "bias":
        raise ConceptError(f"{source}: holds {key!r}, which costars cannot apply; train it on keys and values alone")
    return path


def written(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the keys of our files."""
    return {f"{OURS}{path}": weight for path, weight in weights.items()}
