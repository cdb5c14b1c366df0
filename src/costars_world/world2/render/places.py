"""Where a picture is set: each place is one function that paints the background in pale, flat colours.

Backgrounds have no dark outlines, so that the outlined figures stand out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from costars_world.world2.render.brush import Brush, Colour, mix

_WHITE: Colour = (255, 255, 255)
_SUN: Colour = (255, 232, 120)


@dataclass(frozen=True)
class Place:
    """A place's words in a caption, and the colours of its sky, its ground and a shadow on the ground."""

    phrase: str
    sky: Colour
    ground: Colour
    shadow: Colour


PLACES: Mapping[str, Place] = {
    "park": Place("in a park", (176, 226, 252), (152, 218, 124), (112, 182, 96)),
    "beach": Place("on a beach", (168, 228, 252), (253, 233, 178), (226, 196, 136)),
    "street": Place("on a street", (208, 232, 248), (170, 172, 184), (134, 136, 150)),
    "forest": Place("in a forest", (182, 224, 190), (128, 182, 108), (92, 144, 82)),
    "snow": Place("in the snow", (190, 220, 246), (246, 250, 255), (204, 218, 240)),
    "desert": Place("in a desert", (255, 222, 164), (246, 196, 122), (214, 158, 90)),
    "room": Place("in a room", (252, 230, 208), (220, 170, 126), (184, 134, 96)),
    "moon": Place("on the moon", (84, 80, 152), (190, 192, 212), (148, 150, 176)),
}


@dataclass(frozen=True)
class _Ground:
    """A painter of one background: size and horizon in px."""

    brush: Brush
    rng: random.Random
    width: int
    height: int
    horizon: float

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour, radius: float = 0.0) -> None:
        self.brush.box(left, top, right, bottom, radius, fill, ink=False)

    def disc(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        self.brush.ellipse(x, y, rx, ry, fill, ink=False)

    def along(self, step: float, jitter: float) -> list[float]:
        """Positions across the picture, about one per step, with a random offset."""
        start = self.rng.uniform(-0.4, 0.4) * step
        count = int(self.width / step) + 2
        return [start + k * step + self.rng.uniform(-jitter, jitter) for k in range(count)]

    def spots(self, per_128_px: int, margin: float = 12.0) -> list[tuple[float, float]]:
        """Random points on the ground."""
        count = round(per_128_px * self.width * self.height / 128**2)
        return [
            (self.rng.uniform(4, self.width - 4), self.rng.uniform(self.horizon + margin, self.height - 3))
            for _ in range(count)
        ]

    def sun(self, radius: float) -> None:
        self.disc(self.rng.uniform(14, self.width - 14), self.rng.uniform(12, 22), radius, radius, _SUN)

    def clouds(self, colour: Colour = _WHITE) -> None:
        for x in self.along(80, 20):
            y = self.rng.uniform(12, self.horizon * 0.5)
            for dx, dy, r in ((-9, 1, 6), (0, -2, 8), (10, 1, 6.5)):
                self.disc(x + dx, y + dy, r * 1.25, r * 0.8, colour)


def paint_place(brush: Brush, place: str, rng: random.Random, size_px: tuple[int, int], horizon: float) -> None:
    """Fill the picture with a place; the ground starts at the horizon (px from the top)."""
    width, height = size_px
    look = PLACES[place]
    ground = _Ground(brush, rng, width, height, horizon)
    ground.box(-2, -2, width + 2, horizon + 1, look.sky)
    ground.box(-2, horizon - 16, width + 2, horizon + 1, mix(look.sky, _WHITE, 0.35))
    ground.box(-2, horizon, width + 2, height + 2, look.ground)
    _PAINT[place](ground)


def _park(g: _Ground) -> None:
    g.sun(9)
    g.clouds()
    for x in g.along(70, 14):
        g.disc(x, g.horizon + 8, 52, g.rng.uniform(16, 26), (172, 222, 150))
    g.box(-2, g.horizon, g.width + 2, g.height + 2, PLACES["park"].ground)
    for x in g.along(56, 14):
        top = g.horizon + 5 - g.rng.uniform(40, 50)
        g.box(x - 3, top + 16, x + 3, g.horizon + 6, (166, 122, 84))
        for dx, dy, r in ((-9, 8, 12), (9, 8, 12), (0, 0, 13)):
            g.disc(x + dx, top + dy, r, r, (112, 192, 106))
        g.disc(x - 4, top - 3, 5, 4, (150, 212, 136))
    for x, y in g.spots(8):
        g.disc(x, y, 1.8, 1.8, g.rng.choice((_WHITE, (255, 178, 208), (255, 236, 120))))


def _beach(g: _Ground) -> None:
    g.sun(10)
    g.clouds()
    sea = g.horizon - g.rng.uniform(16, 24)
    g.box(-2, sea, g.width + 2, g.horizon + 5, (86, 186, 232))
    g.box(-2, g.horizon + 1, g.width + 2, g.horizon + 5, (206, 240, 252))
    for x in g.along(30, 8):
        y = g.rng.uniform(sea + 4, g.horizon - 4)
        g.box(x, y, x + 13, y + 1.8, (176, 228, 250), 0.9)
    for x in g.along(112, 18):
        g.box(x - 1.4, g.horizon - 22, x + 1.4, g.horizon + 16, (250, 250, 246))
        top = g.horizon - 22
        g.brush.curve(
            ((x - 22, top + 3), (x - 15, top - 9), (x, top - 15), (x + 15, top - 9), (x + 22, top + 3)),
            (244, 112, 112),
            False,
        )
        g.brush.curve(
            ((x - 7, top + 3), (x - 5, top - 9), (x, top - 15), (x + 5, top - 9), (x + 7, top + 3)),
            (255, 250, 244),
            False,
        )
    for x, y in g.spots(5):
        g.disc(x, y, 2.2, 1.5, (240, 206, 148))


def _street(g: _Ground) -> None:
    x = -g.rng.uniform(0, 18)
    while x < g.width:
        width, top = g.rng.uniform(28, 40), g.rng.uniform(8, 30)
        wall = g.rng.choice(((240, 184, 164), (248, 216, 166), (186, 206, 232), (206, 226, 188), (226, 196, 226)))
        g.box(x, top, x + width - 1.5, g.horizon, wall)
        g.box(x, top, x + width - 1.5, top + 3, mix(wall, (90, 80, 100), 0.3))
        for wy in range(int(top) + 9, int(g.horizon) - 8, 14):
            for wx in (x + 5, x + width - 14):
                g.box(wx, wy, wx + 8, wy + 8, (255, 250, 214))
        x += width
    g.box(-2, g.horizon, g.width + 2, g.horizon + 10, (222, 222, 226))
    g.box(-2, g.horizon + 10, g.width + 2, g.horizon + 12, (190, 190, 198))
    for x in g.along(36, 3):
        g.box(x, g.height - 9, x + 19, g.height - 5.5, (252, 246, 222), 1)


def _forest(g: _Ground) -> None:
    for x in g.along(22, 6):
        top = g.horizon - g.rng.uniform(34, 58)
        g.brush.polygon(((x - 13, g.horizon + 2), (x, top), (x + 13, g.horizon + 2)), (156, 204, 164), False)
    for x in g.along(44, 9):
        foot, tall = g.horizon + g.rng.uniform(3, 9), g.rng.uniform(58, 72)
        g.box(x - 3, foot - 12, x + 3, foot, (150, 112, 84))
        for k, half in enumerate((18, 15, 11.5)):
            low = foot - 9 - k * tall * 0.24
            shade = mix((94, 164, 108), (140, 200, 140), k / 3)
            g.brush.polygon(((x - half, low), (x, low - tall * 0.42), (x + half, low)), shade, False)
    for x, y in g.spots(3):
        g.box(x - 1.6, y - 3, x + 1.6, y + 2.5, (252, 244, 228), 0.6)
        g.brush.curve(((x - 4.6, y - 2), (x - 3, y - 6), (x + 3, y - 6), (x + 4.6, y - 2)), (236, 92, 86), False)
    for x, y in g.spots(7):
        g.brush.polygon(((x - 3, y), (x - 1, y - 5), (x, y - 1), (x + 2, y - 5), (x + 3, y)), (104, 160, 92), False)


def _snow(g: _Ground) -> None:
    for x in g.along(72, 16):
        h = g.rng.uniform(34, 50)
        g.brush.polygon(
            ((x - h * 0.95, g.horizon), (x, g.horizon - h), (x + h * 0.95, g.horizon)), (164, 184, 218), False
        )
        cap = ((x - h * 0.32, g.horizon - h * 0.66), (x, g.horizon - h), (x + h * 0.32, g.horizon - h * 0.66))
        g.brush.polygon((*cap, (x + h * 0.1, g.horizon - h * 0.58), (x - h * 0.1, g.horizon - h * 0.7)), _WHITE, False)
    g.box(-2, g.horizon, g.width + 2, g.height + 2, PLACES["snow"].ground)
    for x in g.along(58, 14):
        for k in range(3):
            y, half = g.horizon + 7 - k * 10, 13 - 2.6 * k
            g.brush.polygon(((x - half, y), (x, y - 16), (x + half, y)), (112, 172, 152), False)
            g.brush.polygon(((x - half * 0.5, y - 8), (x, y - 16), (x + half * 0.5, y - 8)), (240, 248, 252), False)
    for _ in range(round(14 * g.width / 128)):
        g.disc(g.rng.uniform(2, g.width), g.rng.uniform(2, g.horizon), 1.5, 1.5, _WHITE)
    for x, y in g.spots(5):
        g.disc(x, y, 6, 1.3, (226, 236, 250))


def _desert(g: _Ground) -> None:
    g.disc(g.rng.uniform(20, g.width - 20), g.horizon - g.rng.uniform(30, 44), 13, 13, (255, 246, 196))
    for x in g.along(74, 16):
        g.disc(x, g.horizon + 9, 50, g.rng.uniform(18, 28), (240, 184, 122))
    g.box(-2, g.horizon, g.width + 2, g.height + 2, PLACES["desert"].ground)
    green: Colour = (116, 182, 116)
    for x in g.along(88, 24):
        foot, tall = g.horizon + g.rng.uniform(6, 12), g.rng.uniform(34, 44)
        for points, w in (
            (((x - 11, foot - tall * 0.62), (x - 11, foot - tall * 0.4), (x, foot - tall * 0.36)), 5),
            (((x + 11, foot - tall * 0.8), (x + 11, foot - tall * 0.52), (x, foot - tall * 0.48)), 5),
            (((x, foot), (x, foot - tall)), 7.5),
        ):
            g.brush.line(points, w, green)
        g.disc(x, foot - tall - 4, 2.6, 2.6, (255, 140, 180))
    for x, y in g.spots(5):
        g.disc(x, y, 7, 1.2, (232, 178, 104))


def _room(g: _Ground) -> None:
    wall, board = PLACES["room"].sky, (204, 152, 110)
    g.box(-2, -2, g.width + 2, g.horizon + 1, wall)
    for x in g.along(18, 0):
        g.box(x, -2, x + 5, g.horizon + 1, (254, 238, 222))
    g.box(-2, g.horizon - 3, g.width + 2, g.horizon + 2, (255, 250, 244))
    for k in range(1, 4):
        y = g.horizon + k * (g.height - g.horizon) / 4
        g.box(-2, y, g.width + 2, y + 1.2, board)
    g.disc(
        g.width / 2 + g.rng.uniform(-20, 20), g.height - 14, 44, 11, g.rng.choice(((236, 150, 150), (150, 190, 226)))
    )
    framed = g.rng.random() < 0.5
    for x in g.along(54, 5):
        if framed:
            g.box(x - 13, 15, x + 13, 37, (170, 130, 96), 1)
            g.box(x - 11, 17, x + 11, 35, (176, 224, 208))
            g.disc(x, 27, 6, 6, (255, 220, 130))
        else:
            g.box(x - 17, 9, x + 17, 45, _WHITE, 1.5)
            g.box(x - 14.5, 11.5, x - 1, 42.5, (178, 226, 252))
            g.box(x + 1, 11.5, x + 14.5, 42.5, (178, 226, 252))
        framed = not framed


def _moon(g: _Ground) -> None:
    g.box(-2, -2, g.width + 2, g.horizon + 1, PLACES["moon"].sky)
    for _ in range(round(22 * g.width / 128)):
        r = g.rng.choice((0.8, 1.0, 1.6))
        g.disc(g.rng.uniform(0, g.width), g.rng.uniform(0, g.horizon - 3), r, r, (255, 250, 224))
    x, y = g.rng.uniform(18, g.width - 18), g.rng.uniform(16, 26)
    g.disc(x, y, 13, 13, (108, 178, 244))
    g.disc(x - 4, y - 3, 5, 4, (146, 216, 150))
    g.disc(x + 5, y + 5, 4, 3, (146, 216, 150))
    g.box(-2, g.horizon, g.width + 2, g.height + 2, PLACES["moon"].ground)
    for x, y in g.spots(5, 8):
        r = g.rng.uniform(5, 10)
        g.disc(x, y, r, r * 0.42, (160, 162, 188))
        g.disc(x + 1, y + 1, r * 0.78, r * 0.3, (172, 174, 198))


_PAINT: Mapping[str, Callable[[_Ground], None]] = {
    "park": _park,
    "beach": _beach,
    "street": _street,
    "forest": _forest,
    "snow": _snow,
    "desert": _desert,
    "room": _room,
    "moon": _moon,
}
