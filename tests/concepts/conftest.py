"""Fixtures for concept files of a few small tensors."""

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
    """Return a function that writes tensors to NAME.safetensors; keywords are the metadata."""

    def write_file(tensors: Mapping[str, Tensor], name: str = "mine", /, **metadata: str) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path, metadata=metadata or None)
        return path

    return write_file


@pytest.fixture(scope="session")
def random() -> Callable[..., Tensor]:
    """Return a function that draws normal random tensors of a shape, reproducibly."""

    def draw(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))

    return draw


@pytest.fixture(scope="session")
def loras() -> Path:
    """Folder of the LoRAs that the official OMG code ran with."""
    configured = os.environ.get("COSTARS_GOLDEN", Path(__file__).parents[3] / "shared/golden/omg")
    folder = Path(configured).resolve() / "loras"
    missing = [name for name in GOLDEN_LORAS if not (folder / f"{name}.safetensors").is_file()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {folder}; set COSTARS_GOLDEN to the folder of captured values")
    return folder
