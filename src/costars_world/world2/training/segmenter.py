"""The segmenter of World 2: finds every figure and object of a picture of any shape, what it is and how near.

As in version 1 a small convolutional network says for each pixel which class it shows, where the middle
of its figure is, and how near that figure is; pixels that point to one middle are one figure. Figures and
objects vote apart, so a held ball is not lost in the middle of the one who holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn.functional import interpolate

OFFSET_PX = 32.0  # unit of the predicted way to the middle
MULTIPLE_PX = 16  # widths and heights are multiples of this: four halvings


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Two convolutions, each with group norm and SiLU; the first may halve the picture."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class SegmenterNet(nn.Module):
    """(n, 3, h, w) in [-1, 1] to class scores (n, 1 + classes, h, w), way to the middle (n, 2, ...), depth (n, ...)."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (16, 32, 64, 96, 128)) -> None:
        super().__init__()
        self.scores = classes + 1
        ins = (3, *widths[:-1])
        self.down = nn.ModuleList(
            block(i, o, stride=2 if k else 1) for k, (i, o) in enumerate(zip(ins, widths, strict=True))
        )
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.up = nn.ModuleList(block(deep + skip, skip) for deep, skip in pairs)
        self.head = nn.Conv2d(widths[0], self.scores + 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        for up, skip in zip(self.up, skips[-2::-1], strict=True):
            x = up(torch.cat([interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        out = self.head(x).float()
        return out[:, : self.scores], out[:, self.scores : self.scores + 2], out[:, self.scores + 2]


@dataclass(frozen=True)
class FoundFigure:
    """mask (h, w) bool; score is the mean chance of its class; a larger depth is farther away."""

    class_name: str
    mask: NDArray[np.bool_]
    score: float
    depth: float


@dataclass(frozen=True)
class Grouping:
    """How pixels become figures; version 1's values, with smaller ones for objects.

    Votes for middles are blurred by blur_px; a peak needs fewest_votes, and two peaks are at least radius_px
    apart. A figure has smallest_px pixels and its class lowest_share of their chances.
    """

    radius_px: float
    smallest_px: int
    blur_px: float = 2.5
    fewest_votes: float = 0.4
    lowest_share: float = 0.2
    place_share: float = 0.5
    most: int = 8


FIGURES = Grouping(radius_px=16.0, smallest_px=100)
OBJECTS = Grouping(radius_px=10.0, smallest_px=40, blur_px=2.0, fewest_votes=0.3)


def find_figures(
    outputs: tuple[Tensor, Tensor, Tensor], classes: Sequence[str], objects: Sequence[str]
) -> list[FoundFigure]:
    """The figures and objects of one picture, nearest first, from the net's outputs without their batch axis."""
    scores, way, depth = (t.float().cpu() for t in outputs)
    chances = scores.softmax(dim=0).numpy()
    inside = chances[0] < FIGURES.place_share
    is_object = np.array([name in objects for name in classes])
    object_share = chances[1:][is_object].sum(axis=0) / (1 - chances[0]).clip(1e-6)
    found: list[FoundFigure] = []
    for grouping, where in ((FIGURES, inside & (object_share < 0.5)), (OBJECTS, inside & (object_share >= 0.5))):
        for mask in _group(where, way.numpy() * OFFSET_PX, grouping):
            shares = chances[1:, mask].mean(axis=1)
            best = int(shares.argmax())
            if shares[best] >= grouping.lowest_share:
                found.append(FoundFigure(classes[best], mask, float(shares[best]), float(depth.numpy()[mask].mean())))
    return sorted(found, key=lambda f: f.depth)


def _group(inside: NDArray[np.bool_], way: NDArray[np.floating[Any]], grouping: Grouping) -> list[NDArray[np.bool_]]:
    """Masks of the pixels that point to one middle; the strongest middles first."""
    rows, columns = np.nonzero(inside)
    if not len(rows):
        return []
    height, width = inside.shape
    x, y = columns + way[0, rows, columns], rows + way[1, rows, columns]
    votes, _, _ = np.histogram2d(y, x, bins=(height, width), range=[[0, height], [0, width]])
    votes = ndimage.gaussian_filter(votes, grouping.blur_px)
    peaks: list[tuple[int, int]] = []
    across, down = np.arange(width)[None], np.arange(height)[:, None]
    while len(peaks) < grouping.most and votes.max() > grouping.fewest_votes:
        peak = np.unravel_index(votes.argmax(), votes.shape)
        peaks.append((int(peak[0]), int(peak[1])))
        votes[(down - peak[0]) ** 2 + (across - peak[1]) ** 2 < grouping.radius_px**2] = 0
    if not peaks:
        return []
    owner = np.stack([np.hypot(y - py, x - px) for py, px in peaks]).argmin(axis=0)
    masks = []
    for i in range(len(peaks)):
        mask = np.zeros_like(inside)
        mask[rows[owner == i], columns[owner == i]] = True
        if mask.sum() >= grouping.smallest_px:
            masks.append(mask)
    return masks
