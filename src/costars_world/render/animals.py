"""Draws dogs and cats."""

from __future__ import annotations

import random

from costars_world.render.brush import INK, Brush, Colour
from costars_world.render.identity import Identity
from costars_world.render.palette import BLUSH, CLOTH, FUR, WHITE, mix


def draw_animal(brush: Brush, identity: Identity, pose: random.Random) -> None:
    """Draw a dog or a cat."""
    fur, dog = FUR[identity["fur"]], identity.class_name == "dog"
    dark: Colour = (max(0, fur[0] - 70), max(0, fur[1] - 64), max(0, fur[2] - 52))
    patch = (226, 214, 204) if identity["fur"] == "black" else dark
    wag = pose.uniform(-4, 4)
    if dog:
        brush.limb([(11, -8), (20, -16 + wag), (23, -26 + wag)], 6, fur)
    else:
        brush.limb([(10, -6), (21, -8), (24, -22 + wag), (20, -32 + wag)], 4.6, fur)
    brush.ellipse(0, -14, 14.5, 13.5, fur)
    brush.ellipse(0, -12, 7.5, 9.5, mix(fur, WHITE, 0.55), ink=False)
    if identity["marking"] == "spotted":
        for x, y in ((-10, -17), (9.5, -20), (10, -10)):
            brush.ellipse(x, y, 2.8, 2.6, patch, ink=False)
    if identity["marking"] == "striped":
        for side in (-1, 1):
            for y in (-20, -14, -8):
                brush.line([(side * 13, y), (side * 8, y + 1)], 2.2, patch)
    for side in (-1, 1):
        brush.limb([(side * 5, -12), (side * 5.5, -3)], 5.5, fur)
        brush.ellipse(side * 6, -2.2, 5, 3, fur)
    _animal_head(brush, identity, fur, patch, dog)
    if identity["collar"] != "none":
        brush.box(-9.5, -25.5, 9.5, -21.8, 1.8, CLOTH[identity["collar"]])
        brush.ellipse(0, -20.6, 2.4, 2.4, (252, 214, 80))


def _animal_head(brush: Brush, identity: Identity, fur: Colour, patch: Colour, dog: bool) -> None:
    pointed = not dog or identity["ears"] == "pointed"
    if pointed:
        for side in (-1, 1):
            brush.polygon([(side * 15, -40), (side * 13.5, -56), (side * 3, -47)], fur)
            brush.polygon([(side * 12.4, -44), (side * 11.8, -51), (side * 6.5, -47)], BLUSH, ink=False)
    brush.ellipse(0, -36, 16, 13.2, fur)
    if identity["marking"] == "patched":
        brush.ellipse(-6.4, -38, 5.8, 6, patch, ink=False)
    if identity["marking"] == "striped":
        for x in (-5, 0, 5):
            brush.line([(x, -48), (x, -44)], 2.2, patch)
    if identity["marking"] == "spotted":
        brush.ellipse(9, -44, 3, 2.5, patch, ink=False)
    if not pointed:
        for side in (-1, 1):
            brush.ellipse(side * 16, -36, 4.8, 9.5, mix(fur, INK, 0.25))
    eye = WHITE if identity["fur"] == "black" and not dog else INK
    for side in (-1, 1):
        if eye == WHITE:
            brush.ellipse(side * 6.4, -38, 3, 3.2, (214, 226, 96), ink=False)
        brush.ellipse(side * 6.4, -38, 2.0, 2.7, INK, ink=False)
        brush.ellipse(side * 6.4 + 0.7, -39.1, 0.8, 0.9, WHITE, ink=False)
    if dog:
        brush.ellipse(0, -31, 7.4, 5.6, mix(fur, WHITE, 0.6), ink=False)
        brush.ellipse(0, -34, 3.4, 2.4, INK, ink=False)
        brush.chord(0, -29.4, 2.6, 4.2, 0, 180, (240, 100, 116))
    else:
        brush.ellipse(0, -32, 5, 3.4, mix(fur, WHITE, 0.6), ink=False)
        brush.polygon([(-2, -34.5), (2, -34.5), (0, -32)], (240, 110, 130), ink=False)
        for side in (-1, 1):
            brush.line([(side * 7, -33), (side * 19, -35)], 0.8)
            brush.line([(side * 7, -31.5), (side * 19, -30)], 0.8)
