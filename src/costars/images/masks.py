"""Reads mask images as values in [0, 1] and compares aspect ratios."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_ASPECT_ERROR = 0.02  # relative; rounding a size to whole latent cells changes it by less


def same_aspect_ratio(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) have the same aspect ratio, up to MAX_ASPECT_ERROR."""
    (width, height), (w, h) = one, other
    return abs(width * h - height * w) <= MAX_ASPECT_ERROR * width * h


def to_grey_levels(image: Image.Image) -> NDArray[np.float32]:
    """Convert a grey image of 8 or 16 bits to float32 (h, w) in [0, 1], 1 is white.

    Raises ValueError if the image has colours or a transparent pixel.
    """
    if image.mode.startswith("I"):
        return _normalize(np.asarray(image), 65535)
    rgba = np.asarray(image.convert("RGBA"))
    if (rgba[..., 3] < 255).any() or (rgba[..., :3] != rgba[..., :1]).any():
        raise ValueError("has colours or an alpha channel")
    return _normalize(rgba[..., 0], 255)


def _normalize(levels: NDArray[np.generic], maximum: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = levels.astype(np.float32) / np.float32(maximum)
    return values.clip(0, 1)
