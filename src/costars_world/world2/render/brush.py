"""A brush that paints outlined flat shapes and, with the same call, the id of the figure they belong to.

The canvas is RGBA: red, green and blue hold the picture and alpha holds the id (0 is the background), so
one drawing call writes both. With mask_only the canvas is a mode "L" image and every shape is painted 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

SUPERSAMPLE = 3  # everything is drawn at this multiple of the picture size and reduced
INK = (38, 30, 48)

Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = tuple[Point, ...]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """A colour this share of the way from a to b."""
    return (
        int(a[0] + (b[0] - a[0]) * share),
        int(a[1] + (b[1] - a[1]) * share),
        int(a[2] + (b[2] - a[2]) * share),
    )


def darker(colour: Colour, share: float = 0.25) -> Colour:
    """A colour mixed with ink."""
    return mix(colour, INK, share)


def symmetric(*right: Point) -> Points:
    """A closed shape from the points of its right half, from top to bottom."""
    return (*right, *((-x, y) for x, y in reversed(right)))


@dataclass(frozen=True)
class Brush:
    """Local coordinates in pixels: (0, 0) is where the feet stand, x grows rightwards, y downwards."""

    canvas: ImageDraw.ImageDraw
    tag: int = 0
    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    mirror: bool = False
    line_px: float = 1.35
    ink: Colour = INK
    mask_only: bool = False

    def moved(self, dx: float, dy: float, scale: float = 1.0) -> Brush:
        """The same brush with its origin at a local point and its scale multiplied."""
        x, y = self.at(dx, dy)
        return Brush(
            self.canvas,
            self.tag,
            x,
            y,
            self.scale * scale,
            self.mirror,
            self.line_px / scale,
            self.ink,
            self.mask_only,
        )

    def at(self, x: float, y: float) -> Point:
        """A local point in picture pixels."""
        return self.x + (-x if self.mirror else x) * self.scale, self.y + y * self.scale

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, fill: Colour, ink: bool = True) -> None:
        """An ellipse; the outline lies outside its radii."""
        if ink:
            self._ellipse(cx, cy, rx + self.line_px, ry + self.line_px, self.ink)
        self._ellipse(cx, cy, rx, ry, fill)

    def blob(self, ellipses: Sequence[tuple[float, float, float, float]], fill: Colour) -> None:
        """Several ellipses (cx, cy, rx, ry) with one outline around their union."""
        line = self.line_px
        for cx, cy, rx, ry in ellipses:
            self._ellipse(cx, cy, rx + line, ry + line, self.ink)
        for cx, cy, rx, ry in ellipses:
            self._ellipse(cx, cy, rx, ry, fill)

    def blob_plain(self, ellipses: Sequence[tuple[float, float, float, float]], fill: Colour) -> None:
        """Several ellipses (cx, cy, rx, ry) without an outline."""
        for cx, cy, rx, ry in ellipses:
            self._ellipse(cx, cy, rx, ry, fill)

    def polygon(self, points: Points, fill: Colour, ink: bool = True) -> None:
        """A closed shape with straight edges; the outline lies outside."""
        if ink:
            self._fill(outset(points, self.line_px), self.ink)
        self._fill(corners(points), fill)

    def curve(self, points: Points, fill: Colour, ink: bool = True) -> None:
        """A closed shape with a smooth edge through the points; the outline lies outside."""
        smooth = spline(points)
        if ink:
            self._fill(outset(smooth, self.line_px), self.ink)
        self._fill(corners(smooth), fill)

    def box(
        self, left: float, top: float, right: float, bottom: float, radius: float, fill: Colour, ink: bool = True
    ) -> None:
        """A rectangle with round corners; the outline lies outside."""
        if ink:
            line = self.line_px
            self._box(left - line, top - line, right + line, bottom + line, radius + line, self.ink)
        self._box(left, top, right, bottom, radius, fill)

    def line(self, points: Sequence[Point], width: float, fill: Colour | None = None) -> None:
        """A stroke with round ends and joints; width in local pixels."""
        colour = self._colour(self.ink if fill is None else fill)
        xy = [self._pixel(x, y) for x, y in points]
        w = max(1.0, width * self.scale * SUPERSAMPLE)
        self.canvas.line(xy, fill=colour, width=round(w))
        if w > 2.5:
            r = w / 2 - 0.5
            for px, py in xy:
                self.canvas.ellipse((px - r, py - r, px + r, py + r), fill=colour)

    def limb(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A stroke with an outline around it."""
        self.line(points, width + 2 * self.line_px, self.ink)
        self.line(points, width, fill)

    def arc(
        self, cx: float, cy: float, rx: float, ry: float, start: float, end: float, width: float, fill: Colour
    ) -> None:
        """Part of an ellipse's edge; degrees, clockwise from 3 o'clock."""
        if self.mirror:
            start, end = 180 - end, 180 - start
        px, py = self._pixel(cx, cy)
        k = self.scale * SUPERSAMPLE
        box = (px - rx * k, py - ry * k, px + rx * k, py + ry * k)
        self.canvas.arc(box, start, end, fill=self._colour(fill), width=max(1, round(width * k)))

    def _ellipse(self, cx: float, cy: float, rx: float, ry: float, fill: Colour) -> None:
        px, py = self._pixel(cx, cy)
        k = self.scale * SUPERSAMPLE
        self.canvas.ellipse((px - rx * k, py - ry * k, px + rx * k, py + ry * k), fill=self._colour(fill))

    def _box(self, left: float, top: float, right: float, bottom: float, radius: float, fill: Colour) -> None:
        (x0, y0), (x1, y1) = self._pixel(left, top), self._pixel(right, bottom)
        xy = (min(x0, x1), y0, max(x0, x1), y1)
        if radius <= 0:
            self.canvas.rectangle(xy, fill=self._colour(fill))
        else:
            self.canvas.rounded_rectangle(xy, radius * self.scale * SUPERSAMPLE, fill=self._colour(fill))

    def _fill(self, local: NDArray[np.float64], fill: Colour) -> None:
        k = self.scale * SUPERSAMPLE
        xy = local * (-k if self.mirror else k, k) + (self.x * SUPERSAMPLE, self.y * SUPERSAMPLE)
        self.canvas.polygon(xy.ravel().tolist(), fill=self._colour(fill))

    def _pixel(self, x: float, y: float) -> Point:
        x, y = self.at(x, y)
        return x * SUPERSAMPLE, y * SUPERSAMPLE

    def _colour(self, colour: Colour) -> tuple[int, ...] | int:
        return 255 if self.mask_only else (*colour, self.tag)


@lru_cache(maxsize=4096)
def corners(points: Points) -> NDArray[np.float64]:
    """Points as an (n, 2) array."""
    return np.asarray(points, dtype=np.float64)


@lru_cache(maxsize=4096)
def spline(points: Points, steps: int = 6) -> Points:
    """A closed Catmull-Rom curve through the points, with this many steps per segment."""
    p1 = corners(points)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (p[:, None, :] for p in (p0, p1, p2, p3))
    out = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return tuple((float(x), float(y)) for x, y in out.reshape(-1, 2))


@lru_cache(maxsize=4096)
def outset(points: Points, by: float) -> NDArray[np.float64]:
    """The points of a closed shape moved outwards by a distance along their normals (mitre at most 2)."""
    p = corners(points)
    forward, backward = np.roll(p, -1, 0) - p, p - np.roll(p, 1, 0)
    area = float(np.sum(p[:, 0] * np.roll(p[:, 1], -1) - p[:, 1] * np.roll(p[:, 0], -1)))
    sign = 1.0 if area > 0 else -1.0
    normals = []
    for edge in (forward, backward):
        length = np.maximum(np.linalg.norm(edge, axis=1, keepdims=True), 1e-6)
        normals.append(np.stack((edge[:, 1], -edge[:, 0]), 1) / length * sign)
    total = normals[0] + normals[1]
    square = np.maximum(np.sum(total**2, axis=1, keepdims=True), 0.5)
    moved: NDArray[np.float64] = p + total * (2 * by / square)
    return moved
