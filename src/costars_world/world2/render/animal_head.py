"""The head of a dog or a cat, and what it wears; the head's centre is the brush's origin."""

from __future__ import annotations

from costars_world.world2.render.brush import INK, Brush, Colour, darker, mix
from costars_world.world2.render.head import draw_crown, draw_mouth
from costars_world.world2.render.identity import Identity
from costars_world.world2.render.palette import BLUSH, FUR, GOLD, WHITE
from costars_world.world2.render.skeleton import Pose

HEAD_RX, HEAD_RY = 20.5, 16.5
_IRIS: dict[str, Colour] = {"green": (120, 214, 84), "yellow": (255, 214, 60), "blue": (96, 190, 255)}
_PINK: Colour = (250, 150, 170)


def marking_colour(who: Identity) -> Colour:
    """The colour of spots, stripes, patches and masks: dark on light fur, light on dark fur."""
    fur = FUR[who["fur"]]
    light = (fur[0] + fur[1] + fur[2]) / 3
    if who["marking"] == "masked" and 100 < light < 215:
        return (255, 248, 238)
    if light < 100:
        return (226, 216, 208)
    return (122, 106, 112) if light > 230 else darker(fur, 0.5)


def draw_animal_head(brush: Brush, who: Identity, fur: Colour, pose: Pose) -> None:
    """The head with ears, markings, face and headwear."""
    dog = who.class_name == "dog"
    ears = who["ears"] if dog else "pointed"
    patch = marking_colour(who)
    if ears == "pointed":
        for side in (-1, 1):
            brush.polygon(((side * 19.5, -5), (side * 19, -29), (side * 4, -14)), fur)
            brush.polygon(((side * 16.8, -11), (side * 16.4, -22.5), (side * 9, -14.5)), _PINK, ink=False)
    elif ears == "round":
        for side in (-1, 1):
            brush.ellipse(side * 15.5, -14, 7.5, 7.5, fur)
            brush.ellipse(side * 15.5, -14, 4.2, 4.2, _PINK, ink=False)
    brush.ellipse(0, 0, HEAD_RX, HEAD_RY, fur)
    _face_marking(brush, who, patch)
    if dog:
        brush.ellipse(0, 8, 9.5, 7, mix(fur, WHITE, 0.7), ink=False)
    else:
        brush.ellipse(0, 8.5, 7, 4.8, mix(fur, WHITE, 0.7), ink=False)
    _eyes(brush, WHITE if dog else _IRIS[who["eyes"]], pose.look)
    if dog:
        brush.ellipse(0, 4.6, 4.4, 3.1, INK, ink=False)
        brush.ellipse(-1.2, 3.6, 1.2, 0.8, WHITE, ink=False)
        draw_mouth(brush, 10.2, True)
    else:
        brush.polygon(((-2.8, 4), (2.8, 4), (0, 7)), (240, 92, 122), ink=False)
        for side in (-1, 1):
            brush.arc(side * 2.4, 8, 2.4, 2.6, 10, 170, 1.3, INK)
            brush.line([(side * 12, 6.5), (side * 23, 4.5)], 1.0)
            brush.line([(side * 12, 9), (side * 23, 10)], 1.0)
    if ears == "floppy":
        for side in (-1, 1):
            brush.curve(
                ((side * 13, -15), (side * 23, -11), (side * 28, 4), (side * 23, 12), (side * 18, 3)), darker(fur, 0.28)
            )
    for side in (-1, 1):
        brush.ellipse(side * 14, 7.2, 2.8, 1.9, mix(fur, BLUSH, 0.55), ink=False)
    _headwear(brush, who["headwear"])


def _face_marking(brush: Brush, who: Identity, patch: Colour) -> None:
    marking = who["marking"]
    if marking == "patched":
        brush.ellipse(8, -1.5, 7.8, 8.2, patch, ink=False)
    elif marking == "masked":
        brush.blob_plain(((-8, 0, 9, 8), (8, 0, 9, 8), (0, 7, 11, 8)), patch)
    elif marking == "spotted":
        for x, y, r in ((-12, -9, 3.6), (11, -10, 4), (-17, 4, 2.6)):
            brush.ellipse(x, y, r, r * 0.9, patch, ink=False)
    elif marking == "striped":
        for x, top in ((-6, -15), (0, -16), (6, -15)):
            brush.line([(x, top), (x * 0.8, top + 6.5)], 2.8, patch)
        for side in (-1, 1):
            brush.line([(side * 19, 1), (side * 15, 1.5)], 2.4, patch)


def _eyes(brush: Brush, white: Colour, look: float) -> None:
    for side in (-1, 1):
        x = side * 8
        brush.ellipse(x, -1, 5.1, 5.7, INK, ink=False)
        brush.ellipse(x, -1, 4.4, 5, white, ink=False)
        px = x + look * 1.3 - side * 0.4
        brush.ellipse(px, -0.7, 2.6 if white != WHITE else 3, 3.9, INK, ink=False)
        brush.ellipse(px + 0.9, -2.2, 1.1, 1.3, WHITE, ink=False)


def _headwear(brush: Brush, headwear: str) -> None:
    if headwear == "party hat":
        brush.polygon(((-10, -14), (0, -37), (10, -14)), (250, 92, 140))
        brush.polygon(((-7.4, -20), (-4.8, -26), (7, -21), (8.6, -17)), (255, 226, 92), ink=False)
        brush.ellipse(0, -37, 3.6, 3.6, (92, 214, 232))
    elif headwear == "gold crown":
        draw_crown(brush, -13, 0.8)
    elif headwear == "pink flower":
        petals = ((10, -19), (16, -15), (14, -8.5), (6.5, -8.5), (4.5, -15))
        brush.blob([(x, y, 4.2, 4.2) for x, y in petals], (255, 120, 182))
        brush.ellipse(10.2, -13.2, 3.4, 3.4, GOLD, ink=False)
    elif headwear == "blue cap":
        brush.curve(((-13, -12), (-12, -21), (-5, -26), (5, -26), (12, -21), (13, -12), (0, -13.5)), (56, 112, 228))
        brush.curve(((-2, -14), (12, -15.5), (24, -10), (22, -7.5), (8, -10), (-2, -11)), (34, 72, 168))
