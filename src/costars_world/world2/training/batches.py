"""Batches of rendered pictures: one shape per batch, drawn from what is rendered so far."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from costars_world.world2.training.clock import Clock
from costars_world.world2.training.plan import HELD_OUT, PORTRAIT, SHAPES, Plan
from costars_world.world2.training.store import WAITING, Store

REFRESH_S = 1.0  # how often the list of rendered pictures is read anew


def to_pixels(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n, h, w, 3) uint8 to (n, 3, h, w) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).to(dtype).div(127.5).sub(1).contiguous()


def to_bytes(pixels: Tensor) -> NDArray[np.uint8]:
    """(n, 3, h, w) in about [-1, 1] to (n, h, w, 3) uint8."""
    scaled = pixels.float().clamp(-1, 1).add(1).mul(127.5).round().byte()
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def batch_size(square_batch: int, shape: int) -> int:
    """Pictures of a shape that cost about as much as so many square ones."""
    width, height = SHAPES[shape]
    return max(1, round(square_batch * 128 * 128 / (width * height)))


class Rendered:
    """The training slots rendered so far, by shape; with_truth leaves only those with masks."""

    def __init__(self, plan: Plan, store: Store, *, with_truth: bool = False) -> None:
        self.plan, self.store = plan, store
        self.wanted = (plan.kinds != PORTRAIT) & (plan.kinds != HELD_OUT)
        if with_truth:
            self.wanted &= np.arange(plan.count) < plan.with_truth
        self.slots: list[NDArray[np.int64]] = [np.empty(0, np.int64) for _ in SHAPES]
        self.read = -REFRESH_S

    def refresh(self, *, now: bool = False) -> int:
        """Read which slots are there, if that was last done a while ago or has to be now; returns how many."""
        if now or time.monotonic() - self.read >= REFRESH_S:
            there = np.flatnonzero(self.store.done() & self.wanted)
            self.slots = [there[self.plan.shapes[there] == s] for s in range(len(SHAPES))]
            self.read = time.monotonic()
        return sum(len(s) for s in self.slots)

    def wait(self, count: int, clock: Clock, share: float) -> int:
        """Wait until so many are there, all are, or the share of the time is over and at least a tenth is there."""
        while (there := self.refresh()) < count and (self.store.status == WAITING).any():
            if there >= max(1, count // 10) and clock.until(share) <= 0:
                break
            if clock.until(1.0) <= 0:
                break
            time.sleep(0.25)
        return self.refresh(now=True)

    def draw(self, rng: np.random.Generator, square_batch: int) -> tuple[int, NDArray[np.int64]]:
        """A shape, as likely as pictures of it are, and slots of it."""
        self.refresh()
        counts = np.array([len(s) for s in self.slots], dtype=float)
        shape = int(rng.choice(len(SHAPES), p=counts / counts.sum()))
        return shape, rng.choice(self.slots[shape], batch_size(square_batch, shape))

    def images(self, shape: int, slots: NDArray[np.int64]) -> Tensor:
        """(n, h, w, 3) uint8 pictures of slots of one shape."""
        return torch.from_numpy(self.store.images[shape][self.plan.rows[slots]])


def held_out_slots(plan: Plan, store: Store) -> list[NDArray[np.int64]]:
    """The rendered held-out slots of each shape."""
    there = np.flatnonzero(store.done() & (plan.kinds == HELD_OUT))
    return [there[plan.shapes[there] == s] for s in range(len(SHAPES))]


def pieces(slots: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Slots in pieces of at most this size."""
    yield from (slots[i : i + size] for i in range(0, len(slots), size))
