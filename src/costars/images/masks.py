"""Reads mask images as values in [0, 1] and compares aspect ratios."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ALPHA_IS_MASK = "is transparent and of one colour, so its alpha channel is the mask"
ON_BLACK = "is transparent in places, which count as black"
MAX_ASPECT_ERROR = 0.02  # relative; rounding a size to whole latent cells changes it by less


def same_aspect_ratio(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) have the same aspect ratio, up to MAX_ASPECT_ERROR."""
    (width, height), (w, h) = one, other
    return abs(width * h - height * w) <= MAX_ASPECT_ERROR * width * h


def to_grey_levels(image: Image.Image) -> NDArray[np.float32]:
    """Convert a mask image of any mode to float32 (h, w) in [0, 1], 1 is white; see `read_levels`."""
    return read_levels(image)[0]


def read_levels(image: Image.Image) -> tuple[NDArray[np.float32], str]:
    """A mask image as float32 (h, w) in [0, 1], and what was done with its transparency; "" without any.

    A grey image of 1, 8 or 16 bits is the mask itself, 1 is white. If it is transparent somewhere and all that is
    visible has one colour, as a figure that is painted on an empty layer, its alpha channel is the mask; other grey
    images are put on black. Raises ValueError if the mask has colours, or numbers that have no white.
    """
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        return _normalize(np.asarray(image), 65535), ""
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise ValueError(f"has the pixel format {image.mode}, of which it is not clear what is white")
    rgba = np.asarray(image.convert("RGBA"))
    colours, alpha = rgba[..., :3], rgba[..., 3]
    visible = colours[alpha > 0]
    if (alpha < 255).any() and (not len(visible) or (visible == visible[0]).all()):
        return _normalize(alpha, 255), ALPHA_IS_MASK
    if (visible != visible[:, :1]).any():
        raise ValueError("has colours")
    if (alpha < 255).any():
        return _normalize(colours[..., 0], 255) * _normalize(alpha, 255), ON_BLACK
    return _normalize(colours[..., 0], 255), ""


def _normalize(levels: NDArray[np.generic], maximum: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = levels.astype(np.float32) / np.float32(maximum)
    return values.clip(0, 1)
