"""Draws flat, outlined shapes on an image and the same shapes on a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

SUPERSAMPLE = 4  # shapes are drawn at this multiple of the image size, then downsampled
INK = (43, 34, 52)

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Brush:
    """Draws in local pixel coordinates: (0, 0) is where the feet stand, y grows downwards.

    scale and mirror apply to local coordinates, tint (a factor per channel) to colours. ink adds an outline
    to a shape. mask is None for backgrounds.
    """

    picture: ImageDraw.ImageDraw
    mask: ImageDraw.ImageDraw | None
    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    mirror: bool = False
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    line_px: float = 1.15

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, fill: Colour, ink: bool = True) -> None:
        """Draw an ellipse with centre (cx, cy) and radii (rx, ry)."""
        self._draw_round("ellipse", cx, cy, rx, ry, fill, ink)

    def chord(
        self,
        cx: float,
        cy: float,
        rx: float,
        ry: float,
        start: float,
        end: float,
        fill: Colour,
        ink: bool = True,
    ) -> None:
        """Draw an ellipse segment from start to end, in degrees clockwise from 3 o'clock."""
        if self.mirror:
            start, end = 180 - end, 180 - start
        self._draw_round("chord", cx, cy, rx, ry, fill, ink, start, end)

    def arc(self, cx: float, cy: float, rx: float, ry: float, start: float, end: float, fill: Colour = INK) -> None:
        """Draw an elliptical arc, in degrees clockwise from 3 o'clock."""
        if self.mirror:
            start, end = 180 - end, 180 - start
        box = self._box(cx, cy, rx, ry)
        width = self._width(self.line_px)
        self.picture.arc(box, start, end, fill=self._tinted(fill), width=width)
        if self.mask is not None:
            self.mask.arc(box, start, end, fill=255, width=width)

    def polygon(self, points: Sequence[Point], fill: Colour, ink: bool = True) -> None:
        """Draw a filled polygon."""
        xy = [self._to_canvas(*p) for p in points]
        self.picture.polygon(xy, fill=self._tinted(fill))
        if self.mask is not None:
            self.mask.polygon(xy, fill=255)
        if ink:
            self.line([*points, points[0]], self.line_px, INK)

    def line(self, points: Sequence[Point], width: float, fill: Colour = INK) -> None:
        """Draw a stroke with round ends; width is in local pixels."""
        xy = [self._to_canvas(*p) for p in points]
        w = self._width(width)
        for target, colour in self._targets(fill):
            target.line(xy, fill=colour, width=w, joint="curve")
            if w > 3:
                for px, py in (xy[0], xy[-1]):
                    r = w / 2 - 0.5
                    target.ellipse((px - r, py - r, px + r, py + r), fill=colour)

    def limb(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """Draw a stroke with an outline around it."""
        self.line(points, width + 2 * self.line_px, INK)
        self.line(points, width, fill)

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        radius: float,
        fill: Colour,
        ink: bool = True,
    ) -> None:
        """Draw a rectangle with rounded corners."""
        (x0, y0), (x1, y1) = self._to_canvas(left, top), self._to_canvas(right, bottom)
        xy = (min(x0, x1), y0, max(x0, x1), y1)
        r = radius * self.scale * SUPERSAMPLE
        width = self._width(self.line_px) if ink else 0
        self.picture.rounded_rectangle(
            xy, r, fill=self._tinted(fill), outline=self._tinted(INK) if ink else None, width=width
        )
        if self.mask is not None:
            self.mask.rounded_rectangle(xy, r, fill=255)

    def _draw_round(
        self,
        shape: str,
        cx: float,
        cy: float,
        rx: float,
        ry: float,
        fill: Colour,
        ink: bool,
        *angles: float,
    ) -> None:
        box = self._box(cx, cy, rx, ry)
        width = self._width(self.line_px) if ink else 0
        getattr(self.picture, shape)(
            box, *angles, fill=self._tinted(fill), outline=self._tinted(INK) if ink else None, width=width
        )
        if self.mask is not None:
            getattr(self.mask, shape)(box, *angles, fill=255)

    def _targets(self, fill: Colour) -> list[tuple[ImageDraw.ImageDraw, Colour | int]]:
        targets: list[tuple[ImageDraw.ImageDraw, Colour | int]] = [(self.picture, self._tinted(fill))]
        if self.mask is not None:
            targets.append((self.mask, 255))
        return targets

    def _to_canvas(self, x: float, y: float) -> Point:
        x = -x if self.mirror else x
        return (self.x + x * self.scale) * SUPERSAMPLE, (self.y + y * self.scale) * SUPERSAMPLE

    def _box(self, cx: float, cy: float, rx: float, ry: float) -> tuple[float, float, float, float]:
        px, py = self._to_canvas(cx, cy)
        rx, ry = rx * self.scale * SUPERSAMPLE, ry * self.scale * SUPERSAMPLE
        return (px - rx, py - ry, px + rx, py + ry)

    def _width(self, px: float) -> int:
        return max(1, round(px * self.scale * SUPERSAMPLE))

    def _tinted(self, colour: Colour) -> Colour:
        r, g, b = (min(255, int(c * t)) for c, t in zip(colour, self.tint, strict=True))
        return r, g, b


def make_mask(size_px: int) -> Image.Image:
    """Create an empty, supersampled mask for an image of this size."""
    return Image.new("L", (size_px * SUPERSAMPLE, size_px * SUPERSAMPLE), 0)
