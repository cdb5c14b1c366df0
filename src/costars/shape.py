"""Whether a picture that a person gives has the shape of the picture that is drawn."""

from __future__ import annotations

SKEW = 0.02  # how far it may be off, as rounding to whole cells leaves it


def same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two (width, height) are in the same proportion."""
    (width, height), (w, h) = one, other
    return abs(width * h - height * w) <= SKEW * width * h
