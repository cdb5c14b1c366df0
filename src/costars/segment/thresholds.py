"""Turns score maps into label probabilities by a threshold for each map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SOFTNESS = 0.1  # width of the soft step at a map's threshold, as a share of its range; tuned on the built-in world


def compute_soft_labels(maps: Tensor, softness: float = SOFTNESS, above: float = 0.0) -> Tensor:
    """Convert score maps (n, h, w) to label probabilities (1 + n, h, w); label 0 is background.

    Each map is min-max normalised and compared softly with its Otsu threshold plus above. A pixel is background as
    far as no map claims it.
    """
    scores = min_max_normalize(maps)
    thresholds = torch.tensor([otsu_threshold(one.numpy()) for one in scores]).view(-1, 1, 1)
    foreground = torch.sigmoid((scores - thresholds - above) / softness)
    labels = torch.cat([(1 - foreground).prod(dim=0, keepdim=True), foreground])
    return (labels / labels.sum(dim=0)).float()


def min_max_normalize(maps: Tensor) -> Tensor:
    """Scale each of (n, h, w) maps to [0, 1]."""
    shifted = maps - maps.amin(dim=(1, 2), keepdim=True)
    return shifted / shifted.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def otsu_threshold(values: NDArray[np.floating[Any]], bins: int = 64) -> float:
    """Return the threshold with the largest between-class variance of the histogram (Otsu 1979)."""
    counts, edges = np.histogram(values, bins)
    below, moment = np.cumsum(counts)[:-1], np.cumsum(counts * (edges[1:] + edges[:-1]) / 2)
    above = counts.sum() - below
    between = (moment[-1] * below / counts.sum() - moment[:-1]) ** 2 / np.maximum(below * above, 1)
    return float(edges[1 + int(np.argmax(between))])
