"""A dog or a cat: a large head on a body seen from the side, or sitting and seen from the front."""

from __future__ import annotations

from costars_world.world2.render.animal_head import HEAD_RX, HEAD_RY, draw_animal_head, marking_colour
from costars_world.world2.render.brush import Brush, Colour, Point, darker, mix
from costars_world.world2.render.head import draw_bow
from costars_world.world2.render.identity import Identity
from costars_world.world2.render.palette import FUR, GOLD, WHITE, WORD_COLOURS
from costars_world.world2.render.skeleton import Keypoints, Pose, placed

# Local points of the paws: fore right, fore left, hind right, hind left (the figure's own sides).
_STANDING: tuple[Point, ...] = ((-12, -2.5), (-3, -2.5), (14, -2.5), (22, -2.5))
_JUMPING: tuple[Point, ...] = ((-22, -9), (-13, -5), (25, -9), (31, -14))
_SITTING: tuple[Point, ...] = ((-5, -2.5), (5, -2.5), (-14, -3), (14, -3))


def upright(pose: Pose) -> bool:
    """Whether the animal is drawn sitting, from the front."""
    return pose.action in ("sitting", "waving", "riding")


def head_at(pose: Pose) -> Point:
    """The centre of the head in local coordinates."""
    return (0.0, -43.0) if upright(pose) else (-8.0, -41.0)


def draw_animal(brush: Brush, who: Identity, pose: Pose, layer: str) -> None:
    """Draw one layer of a dog or a cat: "back" is everything but a waving paw."""
    fur = FUR[who["fur"]]
    head = brush.moved(*head_at(pose))
    if layer == "front":
        if pose.action == "waving":
            brush.limb([(13, -18), (21, -24), (23, -33)], 8, fur)
            brush.ellipse(23, -35, 5, 5, mix(fur, WHITE, 0.35))
        return
    if upright(pose):
        _sitting_body(brush, who, fur, pose)
    else:
        _side_body(brush, who, fur, _JUMPING if pose.action == "jumping" else _STANDING)
    draw_animal_head(head, who, fur, pose)
    _neckwear(head, who["neckwear"])


def _tail(brush: Brush, who: Identity, fur: Colour, x: float, y: float) -> None:
    if who.class_name == "dog":
        brush.limb([(x, y), (x + 8, y - 7), (x + 10, y - 16)], 7, fur)
    else:
        brush.limb([(x, y), (x + 9, y - 3), (x + 11, y - 14), (x + 5, y - 22), (x + 8, y - 29)], 5.2, fur)


def _sitting_body(brush: Brush, who: Identity, fur: Colour, pose: Pose) -> None:
    _tail(brush, who, fur, 13, -8)
    for side in (-1, 1):
        brush.ellipse(side * 14, -4, 7, 4.2, fur)
    brush.curve(((-10, -34), (10, -34), (16, -16), (14, -3), (-14, -3), (-16, -16)), fur)
    brush.ellipse(0, -17, 8.5, 11, mix(fur, WHITE, 0.55), ink=False)
    _marks(brush, who, ((-12, -14), (12, -18), (11, -8)))
    for side in (-1, 1):
        if pose.action != "waving" or side == -1:
            brush.limb([(side * 5, -16), (side * 5.2, -5)], 6.6, fur)
            brush.ellipse(side * 5.4, -3.2, 5, 3.4, mix(fur, WHITE, 0.35))


def _side_body(brush: Brush, who: Identity, fur: Colour, paws: tuple[Point, ...]) -> None:
    _tail(brush, who, fur, 23, -25)
    roots: tuple[Point, ...] = ((-9, -16), (-2, -15), (14, -15), (19, -17))
    far = darker(fur, 0.16)
    for k in (1, 3):
        _leg(brush, roots[k], paws[k], far)
    brush.curve(((-16, -28), (-4, -33), (12, -32), (24, -28), (26, -18), (18, -11), (2, -10), (-12, -12)), fur)
    brush.ellipse(5, -13.5, 12, 3.2, mix(fur, WHITE, 0.5), ink=False)
    _marks(brush, who, ((10, -25), (19, -23), (15, -16)))
    for k in (0, 2):
        _leg(brush, roots[k], paws[k], fur)


def _leg(brush: Brush, root: Point, paw: Point, fur: Colour) -> None:
    brush.limb([root, paw], 7, fur)
    brush.ellipse(paw[0] - 1, paw[1], 4.8, 3.2, mix(fur, WHITE, 0.35))
    brush.line([root, ((root[0] + paw[0]) / 2, (root[1] + paw[1]) / 2)], 6.4, fur)


def _marks(brush: Brush, who: Identity, at: tuple[Point, ...]) -> None:
    colour = marking_colour(who)
    for x, y in at:
        if who["marking"] == "spotted":
            brush.ellipse(x, y, 3.6, 3.2, colour, ink=False)
        elif who["marking"] == "striped":
            brush.line([(x, y - 4), (x, y + 3)], 2.6, colour)
    if who["marking"] == "patched":
        brush.ellipse(at[0][0], at[0][1], 5.5, 4.6, colour, ink=False)


def _neckwear(head: Brush, neckwear: str) -> None:
    """A collar, bow, bandana or scarf just below the head, whose centre is the origin."""
    if neckwear == "none":
        return
    colour = WORD_COLOURS[neckwear.split(maxsplit=1)[0]]
    y = HEAD_RY + 1
    if neckwear.endswith("collar"):
        head.curve(((-13, y - 3), (0, y + 0.5), (13, y - 3), (12, y + 1.8), (0, y + 5), (-12, y + 1.8)), colour)
        head.ellipse(0, y + 5, 3.4, 3.4, GOLD)
    elif neckwear.endswith("bow"):
        draw_bow(head, 0, y + 2, 1.15, colour)
    elif neckwear.endswith("bandana"):
        head.polygon(((-14, y - 3), (14, y - 3), (0, y + 12)), colour)
        for x, dy in ((-5, 1), (5, 1), (0, 5.5)):
            head.ellipse(x, y + dy, 1.5, 1.5, WHITE, ink=False)
    else:
        head.polygon(((3, y), (11, y), (13, y + 13), (5, y + 13)), darker(colour, 0.12))
        head.box(-15, y - 4, 15, y + 3.4, 3.5, colour)


def animal_keypoints(brush: Brush, pose: Pose) -> Keypoints:
    """Keypoints of face and paws in picture pixels; paws are named as wrists and ankles."""
    x, y = head_at(pose)
    paws = _SITTING if upright(pose) else _JUMPING if pose.action == "jumping" else _STANDING
    local: Keypoints = {
        "head_top": (x, y - HEAD_RY),
        "nose": (x, y + 5),
        "mouth": (x, y + 10),
        "right_eye": (x - 8, y - 1),
        "left_eye": (x + 8, y - 1),
        "right_ear": (x - HEAD_RX + 4, y - HEAD_RY + 6),
        "left_ear": (x + HEAD_RX - 4, y - HEAD_RY + 6),
        "neck": (x, y + HEAD_RY),
    }
    local |= dict(zip(("right_wrist", "left_wrist", "right_ankle", "left_ankle"), paws, strict=True))
    if pose.action == "waving":
        local["left_wrist"] = (23, -35)
    return placed(brush, local)
