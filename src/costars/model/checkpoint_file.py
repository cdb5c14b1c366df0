"""One .safetensors file of a checkpoint: its tensors by the keys of the first releases, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from costars.errors import CostarsError, ModelError
from costars.files.safetensors_header import Entry, read_header
from costars.model.checkpoint_keys import rename_keys
from costars.model.quantized_weights import apply_scale, check_marker, find_scales, is_marker


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """A file whose header was checked. what names it in errors ("model 'mine'").

    entries and original_keys are by the keys of the first releases; scales are {key of a float8 weight: key of its
    scale}.
    """

    what: str
    path: Path
    entries: Mapping[str, Entry]
    original_keys: Mapping[str, str]
    scales: Mapping[str, str]
    metadata: Mapping[str, str]

    def read(self, keys: Iterable[str], dtype: torch.dtype) -> dict[str, Tensor]:
        """These tensors in a number format, those in float8 with their scales applied."""
        with safe_open(self.path, framework="pt") as file:

            def read_scaled(key: str) -> Tensor:
                tensor: Tensor = file.get_tensor(self.original_keys[key])
                scale = self.scales.get(key)
                return tensor if scale is None else apply_scale(tensor, file.get_tensor(self.original_keys[scale]))

            return {key: read_scaled(key).to(dtype) for key in keys}

    def read_one(self, key: str) -> Tensor:
        """One tensor as it is stored."""
        with safe_open(self.path, framework="pt") as file:
            value: Tensor = file.get_tensor(self.original_keys[key])
            return value


def open_checkpoint_file(path: Path, what: str, error: type[CostarsError] = ModelError) -> CheckpointFile:
    """Open a file. Raises `error` if it is damaged, and ModelError for quantized weights that are not supported."""
    header = read_header(path, error)
    original_keys = rename_keys(header.tensors, what)
    entries = {key: header.tensors[original] for key, original in original_keys.items()}
    file = CheckpointFile(
        what=what,
        path=path,
        entries=entries,
        original_keys=original_keys,
        scales=find_scales(entries, what),
        metadata=header.metadata,
    )
    for key in filter(is_marker, entries):
        check_marker(key, file.read_one(key), what)
    return file
