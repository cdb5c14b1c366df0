"""Intersection over union of masks and of boxes."""

from __future__ import annotations

import numpy as np

from costars.types import MaskArray


def mask_iou(a: MaskArray, b: MaskArray) -> float:
    """Return the intersection over union of two masks (h, w); 0 if both are empty."""
    union = float(np.maximum(a, b).sum())
    return float(np.minimum(a, b).sum()) / union if union else 0.0


def box_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the intersection over union of two boxes (left, top, right, bottom)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return intersection / (areas - intersection) if areas > intersection else 0.0
