"""Backgrounds: one function paints each place."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from costars_world.render.brush import Brush, Colour


@dataclass(frozen=True)
class Place:
    """A place: its words in a caption, and the light on its figures (a factor per channel)."""

    phrase: str
    light: tuple[float, float, float]


PLACES: Mapping[str, Place] = {
    "park": Place("in a park", (1.0, 1.0, 1.0)),
    "beach": Place("on a beach", (1.02, 1.0, 0.97)),
    "street": Place("on a street", (1.0, 1.0, 1.0)),
    "forest": Place("in a forest", (0.84, 0.92, 0.84)),
    "snow": Place("in the snow", (0.95, 0.98, 1.05)),
    "desert": Place("in a desert", (1.04, 0.94, 0.82)),
    "room": Place("in a room", (1.0, 0.97, 0.92)),
    "moon": Place("on the moon", (0.76, 0.8, 0.98)),
}


def paint_background(brush: Brush, place: str, rng: random.Random, size: float) -> None:
    """Paint a place on an image of size x size px."""
    _PAINTERS[place](brush, rng, size, size * rng.uniform(0.56, 0.62))


def _bands(brush: Brush, size: float, horizon: float, sky: Colour, ground: Colour) -> None:
    brush.box(-2, -2, size + 2, horizon + 1, 0, sky, ink=False)
    brush.box(-2, horizon, size + 2, size + 2, 0, ground, ink=False)


def _cloud(brush: Brush, x: float, y: float, colour: Colour = (255, 255, 255)) -> None:
    for dx, dy, r in ((-8, 1, 5), (0, -2, 7), (8, 1, 5.5)):
        brush.ellipse(x + dx, y + dy, r * 1.25, r * 0.8, colour, ink=False)


def _tree(brush: Brush, x: float, foot: float, height: float, leaf: Colour) -> None:
    brush.box(x - 3, foot - height * 0.5, x + 3, foot, 1, (126, 84, 56))
    brush.ellipse(x, foot - height * 0.72, height * 0.36, height * 0.34, leaf)


def _park(brush: Brush, rng: random.Random, size: float, horizon: float) -> None:
    _bands(brush, size, horizon, (158, 214, 250), (128, 204, 106))
    brush.ellipse(rng.uniform(14, size - 14), rng.uniform(12, 20), 8, 8, (255, 226, 98), ink=False)
    _cloud(brush, rng.uniform(20, size - 20), rng.uniform(16, 34))
    for x in (rng.uniform(4, 26), rng.uniform(size - 26, size - 4)):
        _tree(brush, x, horizon + 6, rng.uniform(42, 54), (74, 164, 82))
    for _ in range(7):
        x, y = rng.uniform(4, size - 4), rng.uniform(horizon + 14, size - 4)
        brush.ellipse(x, y, 1.7, 1.7, rng.choice(((255, 255, 255), (255, 190, 214))), ink=False)


def _beach(brush: Brush, rng: random.Random, size: float, horizon: float) -> None:
    _bands(brush, size, horizon, (140, 216, 250), (248, 224, 160))
    brush.box(-2, horizon - 20, size + 2, horizon + 4, 0, (56, 160, 220), ink=False)
    for _ in range(4):
        x, y = rng.uniform(4, size - 20), rng.uniform(horizon - 15, horizon - 4)
        brush.line([(x, y), (x + 12, y)], 1.4, (180, 226, 250))
    brush.ellipse(rng.uniform(16, size - 16), rng.uniform(14, 22), 9, 9, (255, 236, 120), ink=False)
    x = rng.choice((rng.uniform(10, 22), rng.uniform(size - 22, size - 10)))
    brush.line([(x, horizon + 18), (x, horizon - 26)], 2.2, (250, 250, 250))
    brush.chord(x, horizon - 22, 19, 15, 180, 360, (238, 90, 90))
    brush.chord(x, horizon - 22, 7, 15, 180, 360, (255, 250, 246), ink=False)


def _street(brush: Brush, rng: random.Random, size: float, horizon: float) -> None:
    _bands(brush, size, horizon, (196, 222, 240), (138, 140, 150))
    x = -rng.uniform(0, 16)
    while x < size:
        width, top = rng.uniform(26, 38), rng.uniform(10, 36)
        brush.box(x, top, x + width, horizon, 0, rng.choice(((216, 134, 112), (232, 192, 132), (150, 172, 204))))
        for wy in range(int(top) + 6, int(horizon) - 10, 13):
            for wx in (x + 5, x + width - 12):
                brush.box(wx, wy, wx + 7, wy + 7, 0.6, (250, 240, 176), ink=False)
        x += width
    brush.box(-2, horizon, size + 2, horizon + 9, 0, (204, 204, 206), ink=False)
    for i in range(-1, 5):
        x = i * 34 + rng.uniform(-3, 3)
        brush.box(x, size - 10, x + 18, size - 6, 0.5, (248, 240, 210), ink=False)


def _forest(brush: Brush, rng: random.Random, size: float, horizon: float) -> None:
    _bands(brush, size, horizon, (92, 148, 116), (72, 112, 70))
    for i in range(6):
        x = i * size / 5 + rng.uniform(-7, 7)
        brush.box(x - 5, -4, x + 5, horizon + rng.uniform(2, 9), 1, (98, 70, 56))
    for i in range(7):
        brush.ellipse(i * size / 6 + rng.uniform(-5, 5), rng.uniform(2, 12), 17, 14, (46, 106, 70))
    for _ in range(3):
        x, y = rng.uniform(6, size - 6), rng.uniform(horizon + 14, size - 6)
        brush.box(x - 1.4, y - 3, x + 1.4, y + 2, 0.5, (246, 236, 214), ink=False)
        brush.chord(x, y - 2, 4.2, 4, 180, 360, (220, 66, 62))


def _snow(brush: Brush, rng: random.Random, size: float, horizon: float) -> None:
    _bands(brush, size, horizon, (186, 212, 236), (246, 250, 255))
    for x in (rng.uniform(10, 44), rng.uniform(80, 118)):
        h = rng.uniform(38, 54)
        brush.polygon([(x - h * 0.9, horizon), (x, horizon - h), (x + h * 0.9, horizon)], (140, 160, 192))
        brush.polygon(
            [(x - h * 0.3, horizon - h * 0.67), (x, horizon - h), (x + h * 0.3, horizon - h * 0.67)],
            (250, 252, 255),
        )
    for x in (rng.uniform(4, 18), rng.uniform(size - 18, size - 4)):
        for k in range(3):
            y = horizon + 8 - k * 9
            brush.polygon([(x - 11 + 2 * k, y), (x, y - 15), (x + 11 - 2 * k, y)], (66, 128, 112))
    for _ in range(12):
        brush.ellipse(rng.uniform(2, size - 2), rng.uniform(2, size - 2), 1.3, 1.3, (255, 255, 255), ink=False)


def _desert(brush: Brush, rng: random.Random, size: float, horizon: float) -> None:
    _bands(brush, size, horizon, (252, 200, 130), (232, 168, 92))
    brush.ellipse(rng.uniform(24, size - 24), horizon - rng.uniform(26, 40), 14, 14, (255, 240, 170), ink=False)
    for x in (rng.uniform(0, 40), rng.uniform(84, size)):
        brush.chord(x, horizon + 4, 44, rng.uniform(14, 22), 180, 360, (220, 150, 84))
    brush.box(-2, horizon + 3, size + 2, size + 2, 0, (236, 176, 100), ink=False)
    x = rng.choice((rng.uniform(8, 18), rng.uniform(size - 18, size - 8)))
    foot = horizon + 12
    brush.limb([(x - 10, foot - 26), (x - 10, foot - 17), (x, foot - 14)], 5, (84, 148, 84))
    brush.limb([(x + 10, foot - 32), (x + 10, foot - 22), (x, foot - 19)], 5, (84, 148, 84))
    brush.limb([(x, foot), (x, foot - 40)], 7, (84, 148, 84))


def _room(brush: Brush, rng: random.Random, size: float, horizon: float) -> None:
    floor = horizon + 8
    _bands(brush, size, floor, (250, 220, 196), (196, 138, 98))
    for i in range(1, 4):
        y = floor + i * (size - floor) / 4
        brush.line([(0, y), (size, y)], 1, (172, 116, 82))
    brush.box(-2, floor - 3, size + 2, floor + 1, 0, (252, 246, 240), ink=False)
    left, right = (rng.uniform(8, 20), rng.uniform(78, 88))
    if rng.random() < 0.5:
        left, right = right, left
    brush.box(left, 12, left + 32, 46, 1.5, (166, 218, 248))
    brush.line([(left + 16, 12), (left + 16, 46)], 1.6, (255, 255, 255))
    brush.line([(left, 29), (left + 32, 29)], 1.6, (255, 255, 255))
    brush.box(right, 16, right + 26, 38, 1, (120, 176, 160))
    brush.ellipse(right + 13, 27, 7, 7, (252, 216, 120), ink=False)


def _moon(brush: Brush, rng: random.Random, size: float, horizon: float) -> None:
    _bands(brush, size, horizon, (32, 30, 62), (150, 152, 172))
    for _ in range(26):
        r = rng.choice((0.6, 0.8, 1.2))
        brush.ellipse(rng.uniform(0, size), rng.uniform(0, horizon - 2), r, r, (250, 246, 220), ink=False)
    brush.ellipse(rng.uniform(18, size - 18), rng.uniform(16, 26), 12, 12, (84, 148, 226))
    for _ in range(5):
        x, y, r = rng.uniform(4, size - 4), rng.uniform(horizon + 8, size - 5), rng.uniform(4, 9)
        brush.ellipse(x, y, r, r * 0.42, (122, 124, 146), ink=False)


_PAINTERS = {
    "park": _park,
    "beach": _beach,
    "street": _street,
    "forest": _forest,
    "snow": _snow,
    "desert": _desert,
    "room": _room,
    "moon": _moon,
}
