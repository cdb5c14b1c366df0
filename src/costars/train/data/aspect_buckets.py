"""Aspect-ratio buckets: group images by shape, scale each to cover its bucket and crop it at the center.

Follows NovelAI (github.com/NovelAI/novelai-aspect-ratio-bucketing). Sizes are (width, height) in px.
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
Box = tuple[float, float, float, float]  # left, top, right, bottom in px


def bucket_sizes(size_px: int, step_px: int, max_aspect_ratio: float = 2.0) -> tuple[Size, ...]:
    """All bucket sizes of at most size_px ** 2 pixels, from the tallest to the widest; the square is one of them.

    Sides are multiples of step_px, and the longer side is at most max_aspect_ratio times the shorter one (NovelAI: 2,
    for 1024 x 512). Neither side of a bucket can grow within the area. Raises TrainError for invalid numbers.
    """
    _check_sizes(size_px, step_px, max_aspect_ratio)
    sizes = set()
    for side in range(step_px, size_px**2 // step_px + 1, step_px):
        other = size_px**2 // side // step_px * step_px
        if max(side, other) <= max_aspect_ratio * min(side, other):
            sizes |= {(side, other), (other, side)}
    return tuple(sorted(sizes, key=lambda size: (size[0] / size[1], size)))


def nearest_size(size_px: Size, sizes: Sequence[Size]) -> Size:
    """The bucket size nearest in log aspect ratio; the largest one if several are equally near."""
    return min(sizes, key=lambda size: (abs(_log_ratio(size) - _log_ratio(size_px)), -size[0] * size[1]))


def crop_to_bucket(example: Example, size_px: Size) -> tuple[Example, tuple[int, int, int, int]]:
    """Scale image and mask to cover the bucket and crop the center; also return SDXL's size conditioning.

    That is (original height, original width, crop top, crop left), with the crop in px of the scaled image
    (Podell et al. 2023, arXiv 2307.01952, section 2.2).
    """
    scale, box = _center_crop(example.image.size, size_px)
    # Crop before scaling: a very narrow image scaled as a whole would not fit in memory.
    image = example.image.resize(size_px, Image.Resampling.LANCZOS, box=box)
    mask = None if example.mask is None else _resize_mask(example.mask, size_px, box)
    (width, height), (left, top) = example.image.size, box[:2]
    return replace(example, image=image, mask=mask), (height, width, round(top * scale), round(left * scale))


def crop_mask_to_bucket(mask: MaskArray, size_px: Size) -> MaskArray:
    """Crop an image's mask (h, w) as `crop_to_bucket` crops the image."""
    return _resize_mask(mask, size_px, _center_crop((mask.shape[1], mask.shape[0]), size_px)[1])


def uncrop_mask(mask: MaskArray, size_px: Size) -> MaskArray:
    """Map the mask of a cropped image back to the original image of this size; 0 outside the crop."""
    _, box = _center_crop(size_px, (mask.shape[1], mask.shape[0]))
    left, top, right, bottom = map(round, box)
    full = np.zeros((size_px[1], size_px[0]), dtype=np.float32)
    part = Image.fromarray(mask).resize((right - left, bottom - top), Image.Resampling.NEAREST)
    full[top:bottom, left:right] = np.asarray(part)
    return full


def group_by_bucket(examples: Sequence[Example], sizes: Sequence[Size]) -> dict[Size, list[int]]:
    """{(width, height): indices of its examples, in order}; empty buckets are left out."""
    buckets: dict[Size, list[int]] = {}
    for index, example in enumerate(examples):
        buckets.setdefault(nearest_size(example.image.size, sizes), []).append(index)
    return buckets


def _check_sizes(size_px: int, step_px: int, max_aspect_ratio: float) -> None:
    if step_px < 1:
        raise TrainError(f"bucket step {step_px} px: must be at least 1 px; use the model's, e.g. 64")
    if size_px < step_px or size_px % step_px:
        near = max(1, round(size_px / step_px)) * step_px
        raise TrainError(f"bucket size {size_px} px: must be a multiple of {step_px} px, e.g. {near}")
    if not max_aspect_ratio >= 1:
        raise TrainError(f"max_aspect_ratio {max_aspect_ratio}: must be at least 1, e.g. 2 for sides of 2 : 1")


def _center_crop(image_px: Size, size_px: Size) -> tuple[float, Box]:
    """Scale factor with which an image covers a size, and the box of the image in px that is kept."""
    (width, height), (w, h) = image_px, size_px
    scale = max(w / width, h / height)
    kept_width, kept_height = min(width, w / scale), min(height, h / scale)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return scale, (left, top, min(width, left + kept_width), min(height, top + kept_height))


def _log_ratio(size_px: Size) -> float:
    return log(size_px[0] / size_px[1])


def _resize_mask(mask: MaskArray, size_px: Size, box: Box) -> MaskArray:
    resized = Image.fromarray(mask).resize(size_px, Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized, dtype=np.float32).clip(0, 1)
