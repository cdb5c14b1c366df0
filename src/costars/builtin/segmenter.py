"""The built-in segmenter: finds every figure of a built-in-world picture, its class and its depth.

A small convolutional network predicts for each pixel its class, the offset to the centre of its figure, and the
depth of that figure. Pixels that vote for the same centre form one figure, so two overlapping women are two regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from torch.nn.functional import interpolate

from costars.builtin.nets import conv_block, load_weights
from costars.errors import SceneError
from costars.types import Layout, Machine, Region

CLASSES = ("man", "woman", "dog", "cat", "robot")  # in the order of the network's class scores
# In a finished picture the network confuses man with woman and dog with cat, hardly ever the kinds (docs/results.md).
KINDS = {"man": "person", "woman": "person", "dog": "animal", "cat": "animal", "robot": "robot"}
SIZE_PX = 128
OFFSET_PX = 32.0  # unit of the predicted offsets


class SegmenterNet(nn.Module):
    """Predicts class scores (n, 6, ...), centre offsets (n, 2, ...) and depths (n, ...) of images (n, 3, 128, 128)."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96, 128)) -> None:
        super().__init__()
        ins = (3, *widths[:-1])
        self.down = nn.ModuleList(
            conv_block(i, o, stride=2 if k else 1) for k, (i, o) in enumerate(zip(ins, widths, strict=True))
        )
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.up = nn.ModuleList(conv_block(deep + skip, skip) for deep, skip in pairs)
        self.head = nn.Conv2d(widths[0], len(CLASSES) + 1 + 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class scores, offsets in units of OFFSET_PX, and depths (smaller is nearer) for x in [-1, 1]."""
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
    """Segments pictures of the built-in world into instances.

    A pixel belongs to a figure if its background probability is below max_background_probability. Votes for
    centres are blurred by blur_px. A peak needs min_votes, and two peaks are at least radius_px apart. A figure
    has at least min_area_px pixels, and its class at least min_class_probability. Defaults were set on held-out
    renders.
    """

    net: SegmenterNet
    device: torch.device
    _: KW_ONLY
    radius_px: float = 18.0
    min_area_px: int = 300  # no figure of the held-out renders has less than 490
    min_class_probability: float = 0.2
    max_background_probability: float = 0.5
    blur_px: float = 2.5
    min_votes: float = 0.4
    max_figures: int = 8

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """Find the regions of these classes in the layout's image."""
        return self.find_regions(layout.image, class_names)

    @torch.no_grad()
    def find_regions(self, image: Image.Image, class_names: Sequence[str] = CLASSES) -> list[Region]:
        """Find every figure of these classes; a region's score is the mean probability of its class.

        Raises SceneError for an unknown class.
        """
        unknown = sorted(set(class_names) - set(CLASSES))
        if unknown:
            raise SceneError(
                f"class_name {unknown[0]!r}: the built-in segmenter knows {', '.join(CLASSES)}; "
                "use one of these, or segmenter: attention"
            )
        scores, offsets, depth = (t[0].cpu() for t in self.net(_to_input(image).to(self.device)))
        probabilities = scores.softmax(dim=0).numpy()
        inside = probabilities[0] < self.max_background_probability
        candidates = [CLASSES.index(name) for name in dict.fromkeys(class_names)]
        found = []
        for mask in self._group_pixels(inside, offsets.numpy() * OFFSET_PX):
            class_probabilities = probabilities[1:, mask].mean(axis=1)
            best = max(candidates, key=lambda c: class_probabilities[c], default=None)
            if best is not None and class_probabilities[best] >= self.min_class_probability:
                score = float(class_probabilities[best])
                found.append((CLASSES[best], mask, score, float(depth.numpy()[mask].mean())))
        order = sorted(range(len(found)), key=lambda i: found[i][3])
        return [
            Region(name, _resize_mask(mask, image.size), score, order.index(i))
            for i, (name, mask, score, _) in enumerate(found)
        ]

    def _group_pixels(self, inside: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
        """Group the pixels inside (h, w) by the centre that they vote for; most voted centres first."""
        rows, columns = np.nonzero(inside)
        if not len(rows):
            return []
        x = columns + offsets[0, rows, columns]
        y = rows + offsets[1, rows, columns]
        peaks = self._find_peaks(x, y)
        if not peaks:
            return []
        distance = np.stack([np.hypot(y - peak_y, x - peak_x) for peak_y, peak_x in peaks])
        nearest = distance.argmin(axis=0)
        masks = []
        for i in range(len(peaks)):
            mask = np.zeros_like(inside)
            members = nearest == i
            mask[rows[members], columns[members]] = True
            if mask.sum() >= self.min_area_px:
                masks.append(mask)
        return masks

    def _find_peaks(self, x: np.ndarray, y: np.ndarray) -> list[tuple[int, int]]:
        """Return the (row, column) centres with the most votes at positions x, y."""
        votes, _, _ = np.histogram2d(y, x, bins=SIZE_PX, range=[[0, SIZE_PX]] * 2)
        votes = ndimage.gaussian_filter(votes, self.blur_px)
        grid_y, grid_x = np.ogrid[:SIZE_PX, :SIZE_PX]
        peaks: list[tuple[int, int]] = []
        while len(peaks) < self.max_figures and votes.max() > self.min_votes:
            row, column = np.unravel_index(votes.argmax(), votes.shape)
            peaks.append((int(row), int(column)))
            votes[(grid_y - row) ** 2 + (grid_x - column) ** 2 < self.radius_px**2] = 0
        return peaks


def _to_input(image: Image.Image) -> Tensor:
    """Convert an image to (1, 3, 128, 128) in [-1, 1]."""
    pixels = np.array(image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(127.5).sub(1)


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if size == (SIZE_PX, SIZE_PX):
        return mask.astype(np.float32)
    large = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return (np.asarray(large) >= 128).astype(np.float32)


def open_segmenter(machine: Machine) -> WorldSegmenter:
    """Open the shipped segmenter. Raises ModelError if its file is missing or damaged."""
    return load_segmenter(machine.weights / "segmenter" / "model.safetensors", machine.device)


def load_segmenter(weights: Path, device: torch.device) -> WorldSegmenter:
    """Load a segmenter from its weights. Raises ModelError if its file is missing or damaged."""
    return WorldSegmenter(load_weights(SegmenterNet(), weights, "segmenter", device), device)
