"""Emblems and surface patterns that several classes share."""

from __future__ import annotations

import math

from costars_world.world2.render.brush import INK, Brush, Colour, Point, Points
from costars_world.world2.render.palette import GOLD, WHITE

_EMBLEM: dict[str, Colour] = {
    "star": (255, 206, 40),
    "heart": (240, 44, 86),
    "moon": (92, 92, 200),
    "flower": (255, 120, 182),
    "face": (255, 226, 110),
}


def star(x: float, y: float, outer: float, inner: float, rays: int = 5) -> Points:
    """The corners of a star around (x, y), one ray pointing up."""
    points: list[Point] = []
    for k in range(2 * rays):
        radius = outer if k % 2 == 0 else inner
        angle = math.pi * k / rays - math.pi / 2
        points.append((round(x + radius * math.cos(angle), 3), round(y + radius * math.sin(angle), 3)))
    return tuple(points)


def draw_badge(brush: Brush, emblem: str, x: float, y: float, radius: float) -> None:
    """An emblem on a white disc; nothing for none."""
    if emblem == "none":
        return
    brush.ellipse(x, y, radius, radius, WHITE)
    draw_emblem(brush, emblem, x, y, radius / 10)


def draw_emblem(brush: Brush, emblem: str, x: float, y: float, k: float) -> None:
    """An emblem about 16 k px wide around (x, y)."""
    colour = _EMBLEM[emblem]
    if emblem == "star":
        brush.polygon(star(x, y + 0.4 * k, 8.6 * k, 4.1 * k), colour, ink=False)
    elif emblem == "heart":
        points = ((0, -3.4), (3.4, -6.8), (7.4, -5), (7.4, 0), (0, 8), (-7.4, 0), (-7.4, -5), (-3.4, -6.8))
        brush.curve(tuple((x + px * k, y + py * k) for px, py in points), colour, ink=False)
    elif emblem == "moon":
        brush.ellipse(x, y, 7.4 * k, 7.4 * k, colour, ink=False)
        brush.ellipse(x + 3.6 * k, y - 1.6 * k, 6 * k, 6 * k, WHITE, ink=False)
    elif emblem == "flower":
        for px, py in star(0, 0, 5 * k, 5 * k)[::2]:
            brush.ellipse(x + px, y + py, 3.6 * k, 3.6 * k, colour, ink=False)
        brush.ellipse(x, y, 3 * k, 3 * k, GOLD, ink=False)
    else:
        brush.ellipse(x, y, 8 * k, 8 * k, colour, ink=False)
        for side in (-1, 1):
            brush.ellipse(x + side * 3 * k, y - 1.6 * k, 1.4 * k, 2 * k, INK, ink=False)
        brush.arc(x, y + 0.6 * k, 4.4 * k, 4 * k, 20, 160, 1.5 * k, INK)


def draw_pattern(brush: Brush, pattern: str, second: Colour, box: tuple[float, float, float, float]) -> None:
    """Stripes, dots, checks or a zigzag inside a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    height, width = bottom - top, right - left
    if pattern == "striped":
        rows = max(2, round(height / 9))
        step = height / rows
        for k in range(rows):
            y = top + (k + 0.3) * step
            brush.box(left, y, right, y + step * 0.48, 0, second, ink=False)
    elif pattern == "dotted":
        rows, columns = max(2, round(height / 9)), max(2, round(width / 9))
        for row in range(rows):
            for column in range(columns - row % 2):
                x = left + (column + 0.5 + (row % 2) / 2) * width / columns
                brush.ellipse(x, top + (row + 0.5) * height / rows, 2.5, 2.5, second, ink=False)
    elif pattern == "checked":
        rows, columns = max(2, round(height / 7)), max(2, round(width / 7))
        dx, dy = width / columns, height / rows
        for row in range(rows):
            for column in range(row % 2, columns, 2):
                x, y = left + column * dx, top + row * dy
                brush.box(x, y, x + dx, y + dy, 0, second, ink=False)
    elif pattern == "zigzag":
        steps = max(3, round(width / 6))
        middle = (top + bottom) / 2
        points = [(left + k * width / steps, middle + (4.5 if k % 2 else -4.5)) for k in range(steps + 1)]
        brush.line(points, 3.6, second)
