"""From how strongly each pixel is somebody's to what one may believe of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SOFTNESS = 0.1  # of belief around a map's threshold, of the map's height; tried on the built-in world


def soft_labels(maps: Tensor, softness: float = SOFTNESS, above: float = 0.0) -> Tensor:
    """(n, h, w) maps to (1 + n, h, w) probabilities, first that a pixel is nobody's.

    Each map is parted so much of its height above its own threshold (Otsu 1979), softly; what is nobody's is
    what no map claims.
    """
    scores = raised(maps)
    levels = torch.tensor([otsu(one.numpy()) for one in scores]).view(-1, 1, 1)
    own = torch.sigmoid((scores - levels - above) / softness)
    labels = torch.cat([(1 - own).prod(dim=0, keepdim=True), own])
    return (labels / labels.sum(dim=0)).float()


def raised(maps: Tensor) -> Tensor:
    """Each of (n, h, w) maps on a scale from its lowest, 0, to its highest, 1."""
    low = maps - maps.amin(dim=(1, 2), keepdim=True)
    return low / low.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def otsu(values: NDArray[np.floating[Any]], bins: int = 64) -> float:
    """The level that parts a histogram best in two (Otsu 1979)."""
    counts, edges = np.histogram(values, bins)
    below, moment = np.cumsum(counts)[:-1], np.cumsum(counts * (edges[1:] + edges[:-1]) / 2)
    above = counts.sum() - below
    between = (moment[-1] * below / counts.sum() - moment[:-1]) ** 2 / np.maximum(below * above, 1)
    return float(edges[1 + int(np.argmax(between))])
