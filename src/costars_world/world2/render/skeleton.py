"""Joints of a figure with arms and legs, in its local coordinates (feet at (0, 0), y downwards).

Side 0 is the local left (x < 0), side 1 the local right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from costars_world.world2.render.brush import Brush, Point

Pair = tuple[Point, Point]
Keypoints = dict[str, Point]


@dataclass(frozen=True)
class Pose:
    """What a figure does; hands are local points that the hands reach for, look shifts the eyes (-1 to 1).

    With wide arms the elbows point outwards, so that the arms go around what is carried.
    """

    action: str = "standing"
    hands: tuple[Point | None, Point | None] = (None, None)
    look: float = 0.0
    wide_arms: bool = False

    @property
    def happy(self) -> bool:
        """Whether the mouth is open."""
        return self.action in ("waving", "jumping", "arms raised", "riding")


@dataclass(frozen=True)
class Build:
    """Proportions of a class: half widths and heights of its joints, px at scale 1."""

    shoulder: Point
    hip: Point
    arm: float  # length of the upper arm, and of the forearm
    down: Point
    wave: Point
    raised: Point
    sit: float  # how far sitting lowers the body


@dataclass(frozen=True)
class Skeleton:
    """Joints of both sides, and how far the body is lowered."""

    shoulders: Pair
    elbows: Pair
    wrists: Pair
    hips: Pair
    knees: Pair
    ankles: Pair
    drop: float


def skeleton(pose: Pose, build: Build) -> Skeleton:
    """The joints of a pose."""
    drop = build.sit if pose.action == "sitting" else 0.0
    shoulders = _both(build.shoulder[0], build.shoulder[1] + drop)
    hips = _both(build.hip[0], build.hip[1] + drop)
    wrists = tuple(_hand(pose, build, side, drop) for side in (0, 1))
    elbows = tuple(
        _elbow(shoulders[side], wrists[side], build.arm * (1.65 if pose.wide_arms else 1.0), side) for side in (0, 1)
    )
    knees, ankles = _legs(pose, build)
    return Skeleton(shoulders, (elbows[0], elbows[1]), (wrists[0], wrists[1]), hips, knees, ankles, drop)


def raised(pose: Pose, side: int) -> bool:
    """Whether an arm is painted in front of the body and the head."""
    return pose.hands[side] is not None or pose.action == "arms raised" or (pose.action == "waving" and side == 1)


def _both(x: float, y: float) -> Pair:
    return (-x, y), (x, y)


def _hand(pose: Pose, build: Build, side: int, drop: float) -> Point:
    target = pose.hands[side]
    if target is not None:
        return target
    sign = 1 if side else -1
    if pose.action == "arms raised":
        x, y = build.raised
    elif pose.action == "waving" and side == 1:
        x, y = build.wave
    elif pose.action == "jumping":
        x, y = build.wave[0] - 3, build.shoulder[1] - 3
    elif pose.action == "riding":
        x, y = build.down[0] - 8, build.down[1] - 8
    else:
        x, y = build.down
    return sign * x, y + drop


def _elbow(shoulder: Point, wrist: Point, length: float, side: int) -> Point:
    """Where the elbow is if both halves of the arm have this length; straight where the hand is too far."""
    dx, dy = wrist[0] - shoulder[0], wrist[1] - shoulder[1]
    distance = max(math.hypot(dx, dy), 1e-6)
    up = dy < 0
    reach = length * 1.5 if up else length  # a raised arm goes around the large head
    bend = math.sqrt(max(0.0, reach**2 - (distance / 2) ** 2))
    out = 1 if side else -1
    nx, ny = -dy / distance, dx / distance
    if nx * out + (0.2 if up else 0.8) * ny < 0:
        nx, ny = -nx, -ny
    return (shoulder[0] + wrist[0]) / 2 + nx * bend, (shoulder[1] + wrist[1]) / 2 + ny * bend


def _legs(pose: Pose, build: Build) -> tuple[Pair, Pair]:
    x, y = build.hip
    if pose.action == "sitting":
        return _both(x + 5, -9), _both(x + 7, -4)
    if pose.action == "jumping":
        return _both(x + 5, y / 2 - 1), _both(x + 4, -3)
    return _both(x + 0.3, y / 2), _both(x + 0.5, -4)


def named(brush: Brush, joints: Skeleton, face: Keypoints) -> Keypoints:
    """Keypoints of face and body in picture pixels; left and right are the figure's own, seen from the front."""
    local: Keypoints = dict(face)
    parts = {
        "shoulder": joints.shoulders,
        "elbow": joints.elbows,
        "wrist": joints.wrists,
        "hip": joints.hips,
        "knee": joints.knees,
        "ankle": joints.ankles,
    }
    for part, (first, second) in parts.items():
        local[f"right_{part}"], local[f"left_{part}"] = first, second
    local["neck"] = (
        (joints.shoulders[0][0] + joints.shoulders[1][0]) / 2,
        (joints.shoulders[0][1] + joints.shoulders[1][1]) / 2,
    )
    return placed(brush, local)


def placed(brush: Brush, local: Keypoints) -> Keypoints:
    """Local keypoints in picture pixels; a mirrored figure swaps the names left and right."""
    return {_swapped(name) if brush.mirror else name: brush.at(*point) for name, point in local.items()}


def _swapped(name: str) -> str:
    if name.startswith("left_"):
        return "right_" + name[5:]
    return "left_" + name[6:] if name.startswith("right_") else name
