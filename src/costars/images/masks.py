"""Pictures that a person gives: whether one has the shape of the picture that is drawn, and what a mask says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SKEW = 0.02  # how far it may be off, as rounding to whole cells leaves it


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two (width, height) are in the same proportion."""
    (width, height), (w, h) = one, other
    return abs(width * h - height * w) <= SKEW * width * h


def grey_levels(image: Image.Image) -> NDArray[np.float32]:
    """(h, w) in [0, 1], 1 is white; raises ValueError if the picture is not grey, or says its shape by an alpha."""
    if image.mode.startswith("I"):
        return _shares(np.asarray(image), 65535)
    colours = np.asarray(image.convert("RGBA"))
    if (colours[..., 3] < 255).any() or (colours[..., :3] != colours[..., :1]).any():
        raise ValueError("has colours or an alpha channel")
    return _shares(colours[..., 0], 255)


def _shares(levels: NDArray[np.generic], most: int) -> NDArray[np.float32]:
    shares: NDArray[np.float32] = levels.astype(np.float32) / np.float32(most)
    return shares.clip(0, 1)
