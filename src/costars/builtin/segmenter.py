"""The built-in segmenter: finds every figure of a world picture, what it is and how near.

A small convolutional network says for each pixel which class it shows, where the middle of its
figure is, and how near that figure is. Pixels that point to one middle are one figure, so two women
give two regions, also where they overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from torch.nn.functional import interpolate

from costars.builtin.nets import block, loaded
from costars.errors import SceneError
from costars.types import Layout, Region

CLASSES = ("man", "woman", "dog", "cat", "robot")  # in the order of the network's scores
SIZE_PX = 128
OFFSET_PX = 32.0  # unit of the predicted way to the middle


class SegmenterNet(nn.Module):
    """(n, 3, 128, 128) in [-1, 1] to class scores (n, 6, ...), way to the middle (n, 2, ...), depth (n, ...)."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96, 128)) -> None:
        super().__init__()
        ins = (3, *widths[:-1])
        self.down = nn.ModuleList(
            block(i, o, stride=2 if k else 1) for k, (i, o) in enumerate(zip(ins, widths, strict=True))
        )
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.up = nn.ModuleList(block(deep + skip, skip) for deep, skip in pairs)
        self.head = nn.Conv2d(widths[0], len(CLASSES) + 1 + 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        for up, skip in zip(self.up, skips[-2::-1], strict=True):
            x = up(torch.cat([interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        out = self.head(x).float()
        count = len(CLASSES) + 1
        return out[:, :count], out[:, count : count + 2], out[:, count + 2]


@dataclass(frozen=True)
class WorldSegmenter:
    """Instance masks of world pictures.

    A pixel belongs to a figure where the place's chance is below place_share. Votes for middles are
    blurred by blur_px; a peak needs fewest_votes, and two peaks are at least radius_px apart (at 12
    the parts of a figure that stands half behind another often were two). A figure has smallest_px
    pixels and its class lowest_share of their chances. Set on held-out renders.
    """

    net: SegmenterNet
    device: torch.device
    radius_px: float = 18.0
    smallest_px: int = 300  # held-out renders show no figure of less than 490
    lowest_share: float = 0.2
    place_share: float = 0.5
    blur_px: float = 2.5
    fewest_votes: float = 0.4
    most_figures: int = 8

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """Regions of these classes in the layout's picture."""
        return self.regions(layout.image, class_names)

    @torch.no_grad()
    def regions(self, image: Image.Image, class_names: Sequence[str] = CLASSES) -> list[Region]:
        """Every figure of these classes, the score being the mean probability of its class.

        Raises SceneError for a class that the world does not have.
        """
        unknown = sorted(set(class_names) - set(CLASSES))
        if unknown:
            raise SceneError(
                f"class_name {unknown[0]!r}: the built-in segmenter knows {', '.join(CLASSES)}; "
                "use one of these, or segmenter: attention"
            )
        pixels = np.array(image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX))
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(127.5).sub(1).to(self.device)
        scores, way, depth = (t[0].cpu() for t in self.net(x))
        chances = scores.softmax(dim=0).numpy()
        figures = self._figures(chances[0] < self.place_share, way.numpy() * OFFSET_PX)
        wanted = [CLASSES.index(name) for name in dict.fromkeys(class_names)]
        found = []
        for mask in figures:
            shares = chances[1:, mask].mean(axis=1)
            best = max(wanted, key=lambda c: shares[c], default=None)
            if best is not None and shares[best] >= self.lowest_share:
                found.append((CLASSES[best], mask, float(shares[best]), float(depth.numpy()[mask].mean())))
        order = sorted(range(len(found)), key=lambda i: found[i][3])
        return [
            Region(name, _sized(mask, image.size), score, order.index(i))
            for i, (name, mask, score, _) in enumerate(found)
        ]

    def _figures(self, inside: np.ndarray, way: np.ndarray) -> list[np.ndarray]:
        """Masks of the pixels that point to one middle; the strongest middles first."""
        rows, columns = np.nonzero(inside)
        if not len(rows):
            return []
        x = columns + way[0, rows, columns]
        y = rows + way[1, rows, columns]
        votes, _, _ = np.histogram2d(y, x, bins=SIZE_PX, range=[[0, SIZE_PX]] * 2)
        votes = ndimage.gaussian_filter(votes, self.blur_px)
        peaks: list[tuple[int, int]] = []
        while len(peaks) < self.most_figures and votes.max() > self.fewest_votes:
            peak = np.unravel_index(votes.argmax(), votes.shape)
            peaks.append((int(peak[0]), int(peak[1])))
            py, px = np.ogrid[:SIZE_PX, :SIZE_PX]
            votes[(py - peak[0]) ** 2 + (px - peak[1]) ** 2 < self.radius_px**2] = 0
        if not peaks:
            return []
        distance = np.stack([np.hypot(y - py, x - px) for py, px in peaks])
        owner = distance.argmin(axis=0)
        masks = []
        for i in range(len(peaks)):
            mask = np.zeros_like(inside)
            mine = owner == i
            mask[rows[mine], columns[mine]] = True
            if mask.sum() >= self.smallest_px:
                masks.append(mask)
        return masks


def _sized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if size == (SIZE_PX, SIZE_PX):
        return mask.astype(np.float32)
    large = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return (np.asarray(large) >= 128).astype(np.float32)


def load_segmenter(weights: Path, device: torch.device) -> WorldSegmenter:
    """The segmenter that ships with costars. Raises ModelError if its file is missing or damaged."""
    return WorldSegmenter(loaded(SegmenterNet(), weights, "segmenter", device), device)
