"""A robot: a metal box with a head, lights and an emblem on its chest."""

from __future__ import annotations

from costars_world.world2.render.brush import INK, Brush, Colour, darker, mix
from costars_world.world2.render.emblems import draw_emblem
from costars_world.world2.render.identity import Identity
from costars_world.world2.render.palette import STEEL, WHITE, WORD_COLOURS
from costars_world.world2.render.person import draw_arm
from costars_world.world2.render.skeleton import Build, Keypoints, Pose, named, raised, skeleton

HEAD_Y = -66.0
BUILD = Build(shoulder=(16, -40), hip=(7.5, -17), arm=11.5, down=(23, -22), wave=(31, -58), raised=(30, -68), sit=11.0)
_LIGHT: Colour = (96, 244, 240)
_DARK: Colour = (46, 50, 78)


def draw_robot(brush: Brush, who: Identity, pose: Pose, layer: str) -> None:
    """Draw one layer of a robot: "back" is everything but raised arms, "front" is raised arms."""
    metal = WORD_COLOURS[who["body"]]
    joints = skeleton(pose, BUILD)
    for side in (0, 1):
        if raised(pose, side) == (layer == "front"):
            draw_arm(brush, joints, side, 5.8, STEEL, STEEL, darker(metal, 0.2))
    if layer == "front":
        return
    sitting = pose.action == "sitting"
    for side in (0, 1):
        out = 1 if side else -1
        if not sitting:
            brush.limb([joints.hips[side], joints.knees[side], joints.ankles[side]], 6, STEEL)
            x = joints.ankles[side][0] + out
            brush.box(x - 6.5, -6.5, x + 6.5, -0.5, 3, darker(metal, 0.25))
    body = brush.moved(0, joints.drop)
    body.box(-16, -46, 16, -16, 6, metal)
    body.box(-16, -20, 16, -16, 3, darker(metal, 0.16), ink=False)
    _chest(body, who["chest"])
    if sitting:
        for side in (0, 1):
            x = joints.ankles[side][0]
            brush.box(x - 6, -10, x + 6, 0, 3.4, darker(metal, 0.25))
            brush.ellipse(x, -5, 3, 3, STEEL, ink=False)
    body.box(-5, -51, 5, -45, 1, STEEL)
    _head(body.moved(0, HEAD_Y), who, metal, pose)


def _antenna(brush: Brush, antenna: str) -> None:
    if antenna == "dish":
        brush.line([(9, -16), (13, -24)], 2.6)
        brush.curve(((4, -30), (13, -34), (22, -27), (20, -21), (10, -25)), (226, 232, 244))
        brush.ellipse(14.5, -30, 2.6, 2.6, (255, 84, 84))
        return
    for x in {"one": (0,), "two": (-10, 10), "none": ()}[antenna]:
        brush.line([(x, -14), (x * 1.25, -26)], 2.4)
        brush.ellipse(x * 1.25, -28, 4, 4, (255, 84, 84))


def _head(brush: Brush, who: Identity, metal: Colour, pose: Pose) -> None:
    _antenna(brush, who["antenna"])
    for side in (-1, 1):
        brush.box(side * 21.5 - 3, -5, side * 21.5 + 3, 6, 2, STEEL)
    if who["head"] == "square":
        brush.box(-21, -16, 21, 16.5, 4, metal)
    elif who["head"] == "round":
        brush.ellipse(0, 0, 22, 18, metal)
    else:
        brush.curve(
            ((-20, -4), (-14, -17), (0, -21), (14, -17), (20, -4), (21, 14), (17, 17), (-17, 17), (-21, 14)), metal
        )
    brush.ellipse(-9, -11.5, 5, 2, mix(metal, WHITE, 0.55), ink=False)
    dx = pose.look * 1.4
    if who["eyes"] == "visor":
        brush.box(-16.5, -7, 16.5, 5, 5.5, _DARK)
        for side in (-1, 1):
            brush.ellipse(side * 7 + dx, -1, 3.3, 3.6, _LIGHT, ink=False)
    elif who["eyes"] == "round":
        for side in (-1, 1):
            brush.ellipse(side * 8.6, -1, 6.2, 6.4, WHITE)
            brush.ellipse(side * 8.3 + dx, -0.6, 3, 3.6, INK, ink=False)
            brush.ellipse(side * 8.3 + dx + 1, -2, 1.1, 1.2, WHITE, ink=False)
    else:
        brush.ellipse(0, -1.5, 9, 9, WHITE)
        brush.ellipse(dx, -1.2, 5, 5.4, (40, 120, 232), ink=False)
        brush.ellipse(dx, -1.2, 2.4, 2.8, INK, ink=False)
        brush.ellipse(dx + 1.8, -3.4, 1.5, 1.6, WHITE, ink=False)
    if pose.happy:
        brush.box(-7, 8.5, 7, 13.5, 2.4, _DARK, ink=False)
        brush.box(-5, 9.8, 5, 11.4, 0.6, WHITE, ink=False)
    else:
        brush.arc(0, 6.4, 6.5, 5, 20, 160, 1.7, _DARK)


def _chest(brush: Brush, chest: str) -> None:
    if chest == "light":
        brush.ellipse(0, -32, 7.2, 7.2, (255, 236, 110))
        brush.ellipse(-2, -34, 2.4, 2.2, WHITE, ink=False)
    elif chest == "screen":
        brush.box(-11, -40, 11, -24, 2, _DARK)
        brush.line([(-8, -31), (-3, -36), (2, -29), (8, -34)], 1.9, (116, 255, 168))
    elif chest == "gear":
        brush.blob([(x, y - 32, 3, 3) for x, y in ((0, -7), (6, -3.5), (6, 3.5), (0, 7), (-6, 3.5), (-6, -3.5))], STEEL)
        brush.ellipse(0, -32, 6, 6, STEEL, ink=False)
        brush.ellipse(0, -32, 2.6, 2.6, _DARK, ink=False)
    else:
        brush.ellipse(0, -32, 10, 10, WHITE)
        draw_emblem(brush, chest, 0, -32, 1.0)


def robot_keypoints(brush: Brush, pose: Pose) -> Keypoints:
    """Keypoints of face and body in picture pixels."""
    joints = skeleton(pose, BUILD)
    y = HEAD_Y + joints.drop
    face = {
        "head_top": (0.0, y - 16),
        "nose": (0.0, y + 4),
        "mouth": (0.0, y + 11),
        "right_eye": (-8.3, y - 1),
        "left_eye": (8.3, y - 1),
        "right_ear": (-21.5, y),
        "left_ear": (21.5, y),
    }
    return named(brush, joints, face)
