"""The layout of a plan in files: its picture, and its latents with the attention maps of words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, from_numpy

from costars.errors import ReadError
from costars.files.pictures import load_picture
from costars.files.tensors import read_tensors, save_tensors
from costars.types import Layout

PICTURE, TENSORS = "layout.png", "layout.safetensors"
_LATENTS, _MAP = "latents", "map/"


def write_layout(layout: Layout, folder: Path) -> None:
    """Write layout.png and layout.safetensors."""
    layout.image.save(folder / PICTURE)
    save_tensors(_to_tensors(layout), folder / TENSORS, {})


def read_layout(folder: Path, prompt: str, rows: int) -> Layout:
    """Read layout.png and layout.safetensors. Raises ReadError if one is missing, damaged, or has other contents."""
    image = load_picture(folder / PICTURE, ("PNG",)).convert("RGB")
    tensors = read_tensors(folder / TENSORS, _LayoutError)
    for key, tensor in tensors.items():
        _check_tensor(key, tensor)
    if _LATENTS not in tensors:
        raise _LayoutError(f"{TENSORS} has no latents")
    latents = tensors.pop(_LATENTS)
    maps = {key.removeprefix(_MAP): tensor.numpy() for key, tensor in tensors.items()}
    return Layout(image=image, latents=latents, maps=maps, prompt=prompt, rows=rows)


class _LayoutError(ReadError):
    """A layout whose tensors are not those of a layout."""

    def __init__(self, problem: str) -> None:
        super().__init__(TENSORS, problem, "plan the scene again")


def _check_tensor(key: str, tensor: Tensor) -> None:
    axes = 4 if key == _LATENTS else 2
    if key != _LATENTS and not key.startswith(_MAP):
        raise _LayoutError(f"{key[:60]!r} is not part of a layout")
    if tensor.ndim != axes or not tensor.numel() or (key == _LATENTS and len(tensor) < 2):
        want = "(steps + 1, channels, height, width)" if axes == 4 else "(height, width)"
        raise _LayoutError(f"{key[:60]!r} is {tuple(tensor.shape)}, want {want}")
    if not tensor.is_floating_point() or tensor.element_size() < 2 or not bool(tensor.isfinite().all()):
        raise _LayoutError(f"{key[:60]!r} ({tensor.dtype}) is not of finite numbers in 16, 32 or 64 bit")


def hash_layout(layout: Layout) -> str:
    """sha256 of the layout's picture and tensors; two layouts with the same hash draw the same pictures."""
    digest = hashlib.sha256(f"{layout.image.size}".encode() + layout.image.convert("RGB").tobytes())
    for key, tensor in sorted(_to_tensors(layout).items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _to_tensors(layout: Layout) -> Mapping[str, Tensor]:
    maps = {f"{_MAP}{word}": from_numpy(array) for word, array in layout.maps.items()}
    return {_LATENTS: layout.latents.cpu(), **maps}
