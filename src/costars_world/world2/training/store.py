"""Pictures and their truth in memory that several processes share; nothing is pickled between them."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from costars_world.world2.training.plan import SHAPES, Plan

MAX_FIGURES = 8  # per picture in the truth; five and what they hold
CAPTION_BYTES = 720  # 77 tokens of the world's words are shorter
CROP_PX = 64
NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which mmap does not name: memory that grows on demand may refuse otherwise
WAITING, DONE, FAILED = range(3)  # values of status


@dataclass(frozen=True)
class Store:
    """images[s] (n, h, w, 3) uint8 and labels[s] (n, h, w) uint8 by shape and row; the rest by slot.

    labels hold 0 for the place and 1 + the index of the figure seen at a pixel; only the slots with truth
    have labels and entries in the tables below. classes (n, f), depths (n, f; 0 is in front), who (n, f)
    are -1 where there is nobody; who is also -1 outside the pools. centres (n, f, 2) are the (x, y) px
    middle of the full mask. values (n, f, a) are indices into the attribute's values or -1.
    crops (n, f, 64, 64, 4) uint8 are filled where judged (n, f) is 1.
    """

    images: tuple[NDArray[np.uint8], ...]
    labels: tuple[NDArray[np.uint8], ...]
    captions: NDArray[np.bytes_]
    status: NDArray[np.uint8]
    figure_counts: NDArray[np.uint8]
    classes: NDArray[np.int8]
    depths: NDArray[np.int8]
    who: NDArray[np.int16]
    centres: NDArray[np.float32]
    values: NDArray[np.int8]
    crops: NDArray[np.uint8]
    judged: NDArray[np.uint8]

    def done(self) -> NDArray[np.bool_]:
        """(n,) whether a slot is rendered."""
        return self.status == DONE

    def caption(self, slot: int) -> str:
        """The caption of one slot."""
        return bytes(self.captions[slot]).decode()


def make_store(plan: Plan, attributes: int) -> Store:
    """Empty arrays for all slots; memory is taken when a page is first written."""
    n, t, f = plan.count, plan.with_truth, MAX_FIGURES
    sizes = [(h, w) for w, h in SHAPES]
    store = Store(
        images=tuple(_shared((plan.shape_count(s), *size, 3), np.uint8) for s, size in enumerate(sizes)),
        labels=tuple(_shared((plan.shape_count(s, truth=True), *size), np.uint8) for s, size in enumerate(sizes)),
        captions=_shared((n,), f"S{CAPTION_BYTES}"),
        status=_shared((n,), np.uint8),
        figure_counts=_shared((n,), np.uint8),
        classes=_shared((t, f), np.int8),
        depths=_shared((t, f), np.int8),
        who=_shared((t, f), np.int16),
        centres=_shared((t, f, 2), np.float32),
        values=_shared((t, f, attributes), np.int8),
        crops=_shared((t, f, CROP_PX, CROP_PX, 4), np.uint8),
        judged=_shared((t, f), np.uint8),
    )
    for table in (store.classes, store.depths, store.who, store.values):
        table.fill(-1)
    return store


def _shared(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros in anonymous shared memory: forked processes see each other's writes, and /dev/shm is not used."""
    size = math.prod(shape)
    if not size:
        return np.zeros(shape, dtype=dtype)
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NO_RESERVE
    buffer = mmap.mmap(-1, size * np.dtype(dtype).itemsize, flags=flags)
    return np.frombuffer(buffer, dtype=dtype, count=size).reshape(shape)
