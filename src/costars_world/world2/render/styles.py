"""Styles of a picture: image-space variants of the flat cartoon, with the same masks.

Captions name every style but the cartoon. Held-out styles never occur in base training; they are for style
adapters and picture adapters to learn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

STYLES = ("cartoon", "ink", "watercolour")
HELD_OUT_STYLES = ("pixel", "crayon", "night")
STYLE_WEIGHTS: Mapping[str, float] = {"cartoon": 0.8, "ink": 0.1, "watercolour": 0.1}
STYLE_PHRASES: Mapping[str, str] = {
    "cartoon": "",
    "ink": "an ink drawing of ",
    "watercolour": "a watercolour of ",
    "pixel": "pixel art of ",
    "crayon": "a crayon drawing of ",
    "night": "a night picture of ",
}

Pixels = NDArray[np.float32]
Ids = NDArray[np.uint8]

_PAPER = np.asarray((252, 247, 236), dtype=np.float32)
_INK = np.asarray((44, 38, 60), dtype=np.float32)
_TEXTURE_PX = 384
_PIXEL_BLOCK_PX = 2


def apply_style(image: Image.Image, ids: Ids, style: str, rng: random.Random) -> Image.Image:
    """The picture in a style; what is where does not change. ids is (height, width), 0 for the background."""
    if style == "cartoon":
        return image
    if style not in _APPLY:
        raise ValueError(f"unknown style {style!r}; there are {', '.join(STYLE_PHRASES)}")
    pixels = _APPLY[style](image, ids, rng)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def sample_style(rng: random.Random) -> str:
    """Draw a style of base training."""
    return rng.choices(list(STYLE_WEIGHTS), list(STYLE_WEIGHTS.values()))[0]


def _floats(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float32)


def _luminance(pixels: Pixels) -> Pixels:
    """(height, width, 1), 0 to 255."""
    weights = np.asarray((0.3, 0.59, 0.11), dtype=np.float32)
    return _float32((pixels @ weights)[..., None])


def _float32(values: NDArray[Any]) -> Pixels:
    return values.astype(np.float32, copy=False)


@lru_cache(maxsize=8)
def _texture(blur_x: float, blur_y: float, slant: float) -> Pixels:
    """Smooth noise of mean 0 and deviation 1; blurs in px, slant moves each row sideways by so many px."""
    noise = np.random.default_rng(7).standard_normal((_TEXTURE_PX, _TEXTURE_PX)).astype(np.float32)
    for axis, blur in ((1, blur_x), (0, blur_y)):
        if blur > 0:
            reach = int(3 * blur) + 1
            kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * blur**2))
            noise = sum(w * np.roll(noise, k - reach, axis) for k, w in enumerate(kernel)).astype(np.float32)
    if slant:
        noise = np.stack([np.roll(row, round(slant * y)) for y, row in enumerate(noise)])
    scaled: Pixels = ((noise - noise.mean()) / noise.std()).astype(np.float32)
    return scaled


def _crop(texture: Pixels, like: Pixels, rng: random.Random) -> Pixels:
    """A random part of a texture with the picture's size, (height, width, 1)."""
    height, width = like.shape[:2]
    y, x = rng.randrange(_TEXTURE_PX - height + 1), rng.randrange(_TEXTURE_PX - width + 1)
    return texture[y : y + height, x : x + width, None]


def _ink(image: Image.Image, ids: Ids, rng: random.Random) -> Pixels:
    """Dark lines and hatching on paper, with a faint wash of colour."""
    pixels = _floats(image)
    light = _luminance(pixels)
    grey = light + (pixels - light) * 0.55
    out = _PAPER + (grey - 255) * 0.42
    height, width = ids.shape
    start = rng.randrange(5)
    falling: NDArray[np.int64] = np.add.outer(np.arange(height), np.arange(width) + start)[..., None]
    rising: NDArray[np.int64] = np.subtract.outer(np.arange(height), np.arange(width) - start)[..., None]
    hatch, cross = np.mod(falling, 5) < 2, np.mod(rising, 5) < 2
    out = np.where(hatch & (light < 172), out * 0.78 + _INK * 0.22, out)
    out = np.where(cross & (light < 112), out * 0.7 + _INK * 0.3, out)
    line = np.clip((92 - light) / 42, 0, 1)
    return _float32(out + (_INK - out) * line)


def _watercolour(image: Image.Image, ids: Ids, rng: random.Random) -> Pixels:
    """Pale, uneven colours that run a little, with soft lines, on grained paper."""
    pixels = _floats(image.filter(ImageFilter.BoxBlur(0.7)))
    wide = _floats(image.filter(ImageFilter.BoxBlur(3)))
    light = _luminance(pixels)
    pigment = 0.78 + 0.13 * _crop(_texture(5, 5, 0), pixels, rng)
    pigment = pigment + np.clip((_luminance(wide) - light) / 255, -0.1, 0.35)
    out = _PAPER + (pixels - 255) * np.clip(pigment, 0.4, 1.1)
    return _float32(out * (1 + 0.022 * _crop(_texture(0.6, 0.6, 0), pixels, rng)))


def _pixel(image: Image.Image, ids: Ids, rng: random.Random) -> Pixels:
    """Square blocks in a small palette."""
    steps = np.round(_floats(image.reduce(_PIXEL_BLOCK_PX)) / 42.5) * 42.5
    return _float32(steps.repeat(_PIXEL_BLOCK_PX, axis=0).repeat(_PIXEL_BLOCK_PX, axis=1))


def _crayon(image: Image.Image, ids: Ids, rng: random.Random) -> Pixels:
    """Slanted strokes of wax through which the paper shows."""
    pixels = _floats(image)
    strokes = _crop(_texture(1.0, 9.0, -0.8), pixels, rng)
    gaps = np.clip(0.22 + 0.26 * strokes, 0, 0.72) * np.clip(_luminance(pixels) / 110, 0.35, 1)
    return _float32(pixels + (_PAPER - pixels) * gaps)


def _night(image: Image.Image, ids: Ids, rng: random.Random) -> Pixels:
    """Dark and blue; the figures catch more light than the place."""
    pixels = _floats(image)
    place = pixels * np.asarray((0.26, 0.3, 0.58), dtype=np.float32) + np.asarray((4, 6, 26), dtype=np.float32)
    figures = pixels * np.asarray((0.68, 0.7, 0.92), dtype=np.float32)
    out: Pixels = np.where(ids[..., None] > 0, figures, place)
    height, width = ids.shape
    for _ in range(width // 5):
        x, y = rng.randrange(width), rng.randrange(int(height * 0.4))
        if ids[y, x] == 0:
            out[y, x] = (255, 250, 210)
    return out


_APPLY: Mapping[str, Callable[[Image.Image, Ids, random.Random], Pixels]] = {
    "ink": _ink,
    "watercolour": _watercolour,
    "pixel": _pixel,
    "crayon": _crayon,
    "night": _night,
}
