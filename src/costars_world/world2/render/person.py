"""A man or a woman: a large head on a small body."""

from __future__ import annotations

from costars_world.world2.render.brush import INK, Brush, Colour, darker, symmetric
from costars_world.world2.render.head import EYE, RX, RY, draw_hair_behind, draw_head
from costars_world.world2.render.identity import Identity
from costars_world.world2.render.palette import HAIR, SKIN, WHITE, WORD_COLOURS
from costars_world.world2.render.skeleton import Build, Keypoints, Pose, Skeleton, named, raised, skeleton

HEAD_Y = -68.0
BUILD = Build(
    shoulder=(11.5, -45), hip=(6.2, -19), arm=11.5, down=(18, -26), wave=(29, -63), raised=(29, -73), sit=13.0
)
_DRESS = symmetric((10, -54), (12.5, -44), (15, -30), (19, -14), (12, -11))
_SHIRT = symmetric((10, -54), (13, -45), (13.6, -30), (13.2, -18), (10, -16.5))
_JEANS: Colour = (82, 104, 168)
_SHOE: Colour = (112, 70, 56)


def draw_person(brush: Brush, who: Identity, pose: Pose, layer: str) -> None:
    """Draw one layer of a person: "back" is everything but raised arms, "front" is raised arms."""
    skin, cloth = SKIN[who["skin"]], WORD_COLOURS[who["shirt_colour"]]
    joints = skeleton(pose, BUILD)
    if layer == "front":
        for side in (0, 1):
            if raised(pose, side):
                _arm(brush, joints, side, cloth, skin)
        return
    woman = who.class_name == "woman"
    head = brush.moved(0, HEAD_Y + joints.drop)
    draw_hair_behind(head, who["hair_style"], HAIR[who["hair_colour"]], woman)
    if pose.action != "sitting":
        _legs(brush, joints, skin if woman else _JEANS)
    for side in (0, 1):
        if not raised(pose, side):
            _arm(brush, joints, side, cloth, skin)
    body = brush.moved(0, joints.drop)
    _torso(body, who, cloth, woman)
    if pose.action == "sitting":
        _legs(brush, joints, skin if woman else _JEANS)
    _scarf(body, who["scarf"])
    draw_head(head, who, pose)


def person_keypoints(brush: Brush, pose: Pose) -> Keypoints:
    """Keypoints of face and body in picture pixels."""
    joints = skeleton(pose, BUILD)
    y = HEAD_Y + joints.drop
    face = {
        "head_top": (0.0, y - RY),
        "nose": (0.0, y + 6),
        "mouth": (0.0, y + 11),
        "right_eye": (-EYE[0], y + EYE[1]),
        "left_eye": (EYE[0], y + EYE[1]),
        "right_ear": (-RX, y + 2.5),
        "left_ear": (RX, y + 2.5),
    }
    return named(brush, joints, face)


def draw_arm(
    brush: Brush, joints: Skeleton, side: int, width: float, upper: Colour, lower: Colour, hand: Colour
) -> None:
    """An arm from the shoulder to the hand, with one outline."""
    shoulder, elbow, wrist = joints.shoulders[side], joints.elbows[side], joints.wrists[side]
    brush.line([shoulder, elbow, wrist], width + 2 * brush.line_px, INK)
    brush.line([elbow, wrist], width, lower)
    brush.line([shoulder, elbow], width, upper)
    brush.ellipse(*wrist, width * 0.62, width * 0.62, hand)


def _arm(brush: Brush, joints: Skeleton, side: int, cloth: Colour, skin: Colour) -> None:
    draw_arm(brush, joints, side, 6.6, cloth, skin, skin)


def _legs(brush: Brush, joints: Skeleton, colour: Colour) -> None:
    for side in (0, 1):
        hip, knee, ankle = joints.hips[side], joints.knees[side], joints.ankles[side]
        out = 1 if side else -1
        if joints.drop:
            brush.limb([hip, (hip[0] + out * 3, -8)], 10, colour)
            brush.ellipse(ankle[0], ankle[1] - 0.5, 5.6, 5.6, _SHOE)
            brush.ellipse(ankle[0], ankle[1] - 0.5, 3, 3, (206, 160, 120), ink=False)
        else:
            brush.limb([hip, knee, ankle], 8, colour)
            brush.ellipse(ankle[0] + out * 1.2, -2.4, 6.4, 3.6, _SHOE)


def _torso(brush: Brush, who: Identity, cloth: Colour, woman: bool) -> None:
    brush.curve(_DRESS if woman else _SHIRT, cloth)
    _shirt_pattern(brush, who["shirt_pattern"], cloth, woman)


def _shirt_pattern(brush: Brush, pattern: str, cloth: Colour, woman: bool) -> None:
    second = (60, 92, 190) if sum(cloth) > 700 else WHITE
    low = -15 if woman else -19

    def half(y: float) -> float:
        return 12.5 + ((y + 44) * 6 / 31 if woman else 0) - 0.6

    if pattern == "striped":
        for y in (-40.0, -32.5, -25.0, -17.5):
            if y + 3 < low + 3:
                brush.polygon(
                    ((-half(y), y), (half(y), y), (half(y + 3.4), y + 3.4), (-half(y + 3.4), y + 3.4)), second, False
                )
    elif pattern == "dotted":
        for x, y in ((-7, -41), (1, -39), (8, -42), (-9, -33), (-2, -31), (6, -33), (-7, -24), (1, -23), (9, -25)):
            brush.ellipse(x, y, 2.3, 2.3, second, ink=False)
    elif pattern == "heart":
        draw_heart(brush, 0, -33, 1.15, WHITE if sum(cloth) < 330 or cloth[0] > 225 > cloth[1] + 60 else (240, 40, 84))


def draw_heart(brush: Brush, x: float, y: float, k: float, colour: Colour, ink: bool = False) -> None:
    """A heart about 14 k px wide around (x, y)."""
    points = ((0, -3), (3, -6), (6.5, -4.5), (6.5, 0), (0, 7), (-6.5, 0), (-6.5, -4.5), (-3, -6))
    brush.curve(tuple((x + px * k, y + py * k) for px, py in points), colour, ink)


def _scarf(brush: Brush, scarf: str) -> None:
    if scarf == "none":
        return
    colour = WORD_COLOURS[scarf.removesuffix(" scarf")]
    brush.polygon(((5, -46), (12, -47), (13.5, -31), (6, -30)), darker(colour, 0.12))
    brush.box(-15, -53, 15, -44.5, 4, colour)
