"""What the tests of concept files share: files of a few small tensors, written into a folder of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

GOLDEN_LORAS = ("char_a", "char_b", "char_c_kohya", "style_kohya")


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
    told = os.environ.get("COSTARS_GOLDEN", Path(__file__).parents[3] / "shared/golden/omg")
    folder = Path(told).resolve() / "loras"
    missing = [name for name in GOLDEN_LORAS if not (folder / f"{name}.safetensors").is_file()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {folder}; set COSTARS_GOLDEN to the captured numbers")
    return folder
