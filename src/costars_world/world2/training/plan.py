"""Which pictures are rendered, in which order: kinds, shapes and seeds of all slots of the data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHAPES = ((128, 128), (192, 128), (256, 128), (128, 192))  # (width, height) px
SHAPE_SHARES = (0.55, 0.18, 0.17, 0.10)  # of the training pictures; most demos and benchmarks are square
PORTRAIT, HELD_OUT, TRUTH, PLAIN = range(4)  # kinds of slots
TRAIN_SEED = 1_000_000  # pictures with smaller seeds are held out
PORTRAIT_SEED = 500_000


@dataclass(frozen=True)
class Counts:
    """How many pictures of each kind; the numbers fit 8 minutes on one GPU with 16 CPU cores."""

    line_up: int = 101  # identities of each class that the judge is measured against: one and 100 others
    portraits: int = 2  # of each of these
    held_out: int = 768  # enough for +-1 percentage point of the segmenter's and judge's shares
    truth: int = 24_000  # with masks and attributes, for segmenter and judge; version 1 used 14_000
    plain: int = 150_000  # for autoencoder and base alone


@dataclass(frozen=True)
class Plan:
    """One entry per slot: kind, index into SHAPES, row in the arrays of that shape, and seed.

    Slots are rendered in this order, so what segmenter and judge need comes first.
    """

    kinds: NDArray[np.uint8]
    shapes: NDArray[np.uint8]
    rows: NDArray[np.int32]
    seeds: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of slots."""
        return len(self.kinds)

    @property
    def with_truth(self) -> int:
        """Number of slots with masks and attributes; they are the first ones."""
        return int((self.kinds != PLAIN).sum())

    def shape_count(self, shape: int, truth: bool = False) -> int:
        """Number of pictures of one shape, of all kinds or of those with truth."""
        return int(((self.shapes == shape) & ((self.kinds != PLAIN) | (not truth))).sum())


def make_plan(counts: Counts, classes: int, seed_offset: int = 0) -> Plan:
    """The slots of a run; another seed_offset gives other training pictures, the held-out ones stay."""
    portraits = counts.line_up * counts.portraits * classes
    numbers = (portraits, counts.held_out, counts.truth, counts.plain)
    kinds = np.repeat(np.arange(4, dtype=np.uint8), numbers)
    shapes = np.random.default_rng(0).choice(len(SHAPES), len(kinds), p=SHAPE_SHARES).astype(np.uint8)
    shapes[:portraits] = 0
    rows = np.zeros(len(kinds), dtype=np.int32)
    for shape in range(len(SHAPES)):
        rows[shapes == shape] = np.arange((shapes == shape).sum())
    seeds = np.empty(len(kinds), dtype=np.int64)
    seeds[:portraits] = PORTRAIT_SEED + np.arange(portraits)
    seeds[portraits : portraits + counts.held_out] = np.arange(counts.held_out)
    trained = counts.truth + counts.plain
    seeds[portraits + counts.held_out :] = TRAIN_SEED + seed_offset + np.arange(trained)
    return Plan(kinds, shapes, rows, seeds)
