"""Layers whose whole weight a file brings: Custom Diffusion's keys and values, and those that our own files hold."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from costars.concepts.keys import module_path
from costars.errors import ConceptError

OURS = "weights."  # weights.<module path> in a file of ours
_AXES = (2, 4)  # of a linear layer and a convolution
_UNCHANGED = re.compile(r".*\.processor")  # an empty tensor, by which diffusers tells a layer that keeps its own
_KEY = re.compile(r"(.*)\.processor\.to_(q|k|v|out)_custom_diffusion(?:\.0)?\.(weight|bias)")


def is_replaced(key: str) -> bool:
    """Whether this is a layer's whole weight, or says that the layer keeps its own."""
    return key.startswith(OURS) or any(kind.fullmatch(key) for kind in (_KEY, _UNCHANGED))


def read_replaced(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """{module path: (out, in) or (out, in, kh, kw)} in float32, of Custom Diffusion (Kumari et al. 2023, arXiv
    2212.04488) as diffusers writes it, or of a file of ours; raises ConceptError for what cannot be applied."""
    weights = {}
    for key, tensor in tensors.items():
        if _UNCHANGED.fullmatch(key) and not key.startswith(OURS) and not tensor.numel():
            continue
        path = key.removeprefix(OURS) if key.startswith(OURS) else _path(key, source)
        if tensor.ndim not in _AXES or not tensor.isfinite().all():
            shape = tuple(tensor.shape)
            raise ConceptError(
                f"{source}: {key!r} is no finite weight of 2 or 4 axes (its shape: {shape}); fetch the file again"
            )
        weights[path] = tensor.to(torch.float32)
    return weights


def _path(key: str, source: str) -> str:
    found = _KEY.fullmatch(key)
    stem, which, last = found.groups() if found else ("", "", "")
    path = module_path(f"{stem}.to_{which}")
    if path is None or last == "bias":
        raise ConceptError(f"{source}: holds {key!r}, which costars cannot apply; train it on keys and values alone")
    return path


def written(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the keys of our files."""
    return {f"{OURS}{path}": weight for path, weight in weights.items()}
