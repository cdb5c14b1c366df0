"""Vision models that stay in the CPU's memory between two pictures, and are on the device only in use."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

from costars.model.offload import Offload
from costars.segment.checkpoint import Checkpoint, CheckpointKind, open_checkpoint

CPU = torch.device("cpu")


class CachedCheckpoint(NamedTuple):
    """A checkpoint in the CPU's memory, and what copies it to the device."""

    checkpoint: Checkpoint
    offload: Offload


CheckpointCache = MutableMapping[str, CachedCheckpoint]  # {folder: checkpoint}


@contextmanager
def checkpoint_on_device(
    cache: CheckpointCache, kind: CheckpointKind, folder: str, device: torch.device, dtype: torch.dtype
) -> Iterator[Checkpoint]:
    """Within the block the checkpoint can compute on the device; it is loaded at its first use.

    Raises ModelError as open_checkpoint.
    """
    if folder not in cache:
        offload = Offload("full" if device == CPU else "offload", device)
        loaded = open_checkpoint(kind, folder, CPU, dtype, offline=True)
        if device != CPU:
            offload.place(loaded.model)
        cache[folder] = CachedCheckpoint(loaded, offload)
    checkpoint, offload = cache[folder]
    with offload.on_device(checkpoint.model):
        yield checkpoint
