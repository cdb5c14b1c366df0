"""Draws robots."""

from __future__ import annotations

import random

from costars_world.render.brush import INK, Brush
from costars_world.render.identity import Identity
from costars_world.render.palette import METAL, WHITE, mix


def draw_robot(brush: Brush, identity: Identity, pose: random.Random) -> None:
    """Draw a robot."""
    metal = METAL[identity["body"]]
    dark = mix(metal, INK, 0.35)
    for side in (-1, 1):
        brush.limb([(side * 7, -20), (side * 7, -5)], 5, (132, 138, 150))
        brush.box(side * 8 - 6.5, -6, side * 8 + 6.5, 0, 2.4, dark)
        lift = pose.choice((0, 0, -14))
        brush.limb([(side * 14, -38), (side * 21, -31 + lift), (side * 20, -23 + 2 * lift)], 4.4, (132, 138, 150))
        brush.ellipse(side * 20, -22 + 2 * lift, 4, 4, dark)
    brush.box(-14.5, -43, 14.5, -17, 4, metal)
    _chest(brush, identity["chest"])
    brush.box(-4, -47, 4, -42, 1, (132, 138, 150))
    for x in {"one": (0,), "two": (-8, 8), "none": ()}[identity["antenna"]]:
        brush.line([(x, -70), (x, -80)], 1.8)
        brush.ellipse(x, -82, 3, 3, (250, 90, 84))
    if identity["head"] == "square":
        brush.box(-16.5, -73, 16.5, -46, 4, metal)
    elif identity["head"] == "round":
        brush.ellipse(0, -59.5, 17, 14, metal)
    else:
        brush.chord(0, -52, 17, 22, 180, 360, metal)
        brush.box(-17, -54, 17, -46, 2.5, metal)
    if identity["eyes"] == "visor":
        brush.box(-12.5, -64.5, 12.5, -56.5, 4, (40, 44, 66))
        for side in (-1, 1):
            brush.ellipse(side * 5.4, -60.5, 2.2, 2.2, (96, 240, 232), ink=False)
    else:
        for side in (-1, 1):
            brush.ellipse(side * 6.8, -60.5, 5, 5, WHITE)
            brush.ellipse(side * 6.8, -60, 2.2, 2.4, INK, ink=False)
    brush.box(-6, -52.5, 6, -49.5, 1.2, (70, 70, 88), ink=False)


def _chest(brush: Brush, chest: str) -> None:
    if chest == "light":
        brush.ellipse(0, -31, 5.4, 5.4, (255, 236, 120))
    elif chest == "heart":
        for side in (-1, 1):
            brush.ellipse(side * 3.2, -33, 3.8, 3.6, (240, 40, 80), ink=False)
        brush.polygon([(-6.6, -31.6), (6.6, -31.6), (0, -24)], (240, 40, 80), ink=False)
    else:
        brush.box(-9, -38, 9, -25, 2, (40, 60, 80))
        brush.line([(-6, -30), (-2, -34), (2, -29), (6, -33)], 1.6, (110, 250, 160))
