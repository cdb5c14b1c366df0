"""How an inhabitant looks: dispatch from its class to the functions that draw it and name its keypoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from costars_world.world2.render.animal import animal_keypoints, draw_animal
from costars_world.world2.render.brush import Brush
from costars_world.world2.render.car import draw_car
from costars_world.world2.render.identity import PEOPLE, Identity
from costars_world.world2.render.objects import draw_backpack, draw_ball, draw_chair, draw_teddy, draw_vase
from costars_world.world2.render.person import draw_person, person_keypoints
from costars_world.world2.render.robot import draw_robot, robot_keypoints
from costars_world.world2.render.skeleton import Keypoints, Pose, placed

_OBJECTS: Mapping[str, Callable[[Brush, Identity], None]] = {
    "teddy": draw_teddy,
    "ball": draw_ball,
    "backpack": draw_backpack,
    "vase": draw_vase,
    "chair": draw_chair,
}
# Local heights of top, centre and base of a thing, px.
_HEIGHTS: Mapping[str, tuple[float, float, float]] = {
    "teddy": (-56, -30, -2),
    "ball": (-40, -21, -2),
    "backpack": (-46, -25, -3),
    "vase": (-38, -20, -3),
    "chair": (-66, -26, -21),
    "car": (-33, -20, -9),
}
_FACES: Mapping[str, Keypoints] = {
    "teddy": {
        "right_eye": (-7.6, -44),
        "left_eye": (7.6, -44),
        "nose": (0, -39.5),
        "right_ear": (-16, -51),
        "left_ear": (16, -51),
    },
}


def draw_figure(brush: Brush, who: Identity, pose: Pose, layer: str) -> None:
    """Draw one layer of a figure standing at the brush's origin; "back" comes before "front"."""
    if who.class_name in PEOPLE:
        draw_person(brush, who, pose, layer)
    elif who.class_name == "robot":
        draw_robot(brush, who, pose, layer)
    elif who.class_name in ("dog", "cat"):
        draw_animal(brush, who, pose, layer)
    elif who.class_name == "car":
        draw_car(brush, who, layer)
    elif layer == "back":
        _OBJECTS[who.class_name](brush, who)


def keypoints_of(brush: Brush, who: Identity, pose: Pose) -> Keypoints:
    """Named keypoints of a figure in picture pixels; a thing has top, centre and base."""
    if who.class_name in PEOPLE:
        return person_keypoints(brush, pose)
    if who.class_name == "robot":
        return robot_keypoints(brush, pose)
    if who.class_name in ("dog", "cat"):
        return animal_keypoints(brush, pose)
    top, centre, base = _HEIGHTS[who.class_name]
    local: Keypoints = {"top": (0.0, top), "centre": (0.0, centre), "base": (0.0, base)}
    return placed(brush, local | dict(_FACES.get(who.class_name, {})))
