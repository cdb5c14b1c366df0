"""What the tests of concept files share: files of a few small tensors, written into a folder of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Write a .safetensors of these tensors; the keywords are its metadata."""

    def of(tensors: Mapping[str, Tensor], name: str = "mine", /, **metadata: str) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path, metadata=metadata or None)
        return path

    return of


@pytest.fixture(scope="session")
def random() -> Callable[..., Tensor]:
    """Numbers of this shape, the same at each run."""

    def of(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))

    return of


@pytest.fixture(scope="session")
def loras() -> Path:
    """The LoRAs that the official OMG code was run with."""
    home = Path(__file__).parents[2]
    folder = (home / os.environ.get("COSTARS_GOLDEN", "../shared/golden/omg")).resolve() / "loras"
    if not folder.is_dir():
        pytest.skip(f"no golden files at {folder}; set COSTARS_GOLDEN")
    return folder
