"""Sizes to train at: pictures of like shape go together, each scaled to cover a size and cut in the middle.

Aspect-ratio buckets are NovelAI's (github.com/NovelAI/novelai-aspect-ratio-bucketing): pictures need not be
square, and little of one is cut away. Sizes are (width, height) in px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import log

import numpy as np
from PIL import Image

from costars.errors import TrainError
from costars.train.data.images import Example
from costars.types import MaskArray

Size = tuple[int, int]


def bucket_sizes(size_px: int, step_px: int, longest: float = 2.0) -> tuple[Size, ...]:
    """Every (width, height) of at most size_px ** 2 pixels, from the tallest to the widest, the square among them.

    Sides are multiples of step_px, the longer one at most longest times the other; for each width it is the
    largest height, and for each height the largest width. longest is NovelAI's 1024 by 512. Raises TrainError
    for numbers that make no size.
    """
    _check(size_px, step_px, longest)
    found = set()
    for side in range(step_px, size_px**2 // step_px + 1, step_px):
        other = size_px**2 // side // step_px * step_px
        if max(side, other) <= longest * min(side, other):
            found |= {(side, other), (other, side)}
    return tuple(sorted(found, key=lambda size: (size[0] / size[1], size)))


def nearest_size(size_px: Size, sizes: Sequence[Size]) -> Size:
    """The one nearest in log aspect ratio, of several the largest."""
    return min(sizes, key=lambda size: (abs(_shape(size) - _shape(size_px)), -size[0] * size[1]))


def fitted(example: Example, size_px: Size) -> tuple[Example, tuple[int, int, int, int]]:
    """Picture and mask scaled to cover the size and cut in the middle, and what SDXL is told of it.

    That is (original height, original width, crop top, crop left), the crop in px of the scaled picture
    (Podell et al. 2023, arXiv 2307.01952, section 2.2).
    """
    scale, box = _cut(example.image.size, size_px)
    # Only the part that stays is scaled: a narrow strip would grow past all memory.
    image = example.image.resize(size_px, Image.Resampling.LANCZOS, box=box)
    mask = None if example.mask is None else _scaled(example.mask, size_px, box)
    (width, height), (left, top) = example.image.size, box[:2]
    return replace(example, image=image, mask=mask), (height, width, round(top * scale), round(left * scale))


def fitted_mask(mask: MaskArray, size_px: Size) -> MaskArray:
    """A picture's mask as one of the picture fitted to this size."""
    return _scaled(mask, size_px, _cut((mask.shape[1], mask.shape[0]), size_px)[1])


def put_back(mask: MaskArray, size_px: Size) -> MaskArray:
    """A mask of a fitted picture as one of the picture of this size that it was cut from: 0 where it was cut."""
    _, box = _cut(size_px, (mask.shape[1], mask.shape[0]))
    left, top, right, bottom = map(round, box)
    whole = np.zeros((size_px[1], size_px[0]), dtype=np.float32)
    part = Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    whole[top:bottom, left:right] = np.asarray(part)
    return whole


def in_buckets(examples: Sequence[Example], sizes: Sequence[Size]) -> dict[Size, list[int]]:
    """Which examples go to which size, {(width, height): indices in order}; sizes without one are left out."""
    buckets: dict[Size, list[int]] = {}
    for index, example in enumerate(examples):
        buckets.setdefault(nearest_size(example.image.size, sizes), []).append(index)
    return buckets


def _check(size_px: int, step_px: int, longest: float) -> None:
    if step_px < 1:
        raise TrainError(f"step {step_px} px: sizes grow by at least 1 px; give the model's, such as 64")
    if size_px < step_px or size_px % step_px:
        near = max(1, round(size_px / step_px)) * step_px
        raise TrainError(f"size {size_px} px: not a multiple of {step_px} px; give one, such as {near}")
    if not longest >= 1:
        raise TrainError(f"longest {longest}: a longer side over the shorter; give at least 1, such as 2")


def _cut(picture_px: Size, size_px: Size) -> tuple[float, tuple[float, float, float, float]]:
    """How much a picture is scaled to cover a size, and the box of it in px (left, top, right, bottom) that stays."""
    (width, height), (w, h) = picture_px, size_px
    scale = max(w / width, h / height)
    wide, high = min(width, w / scale), min(height, h / scale)
    left, top = (width - wide) / 2, (height - high) / 2
    return scale, (left, top, min(width, left + wide), min(height, top + high))


def _shape(size_px: Size) -> float:
    return log(size_px[0] / size_px[1])


def _scaled(mask: MaskArray, size_px: Size, box: tuple[float, float, float, float]) -> MaskArray:
    resized = Image.fromarray(mask).resize(size_px, Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized, dtype=np.float32).clip(0, 1)
