"""Where figures stand, which is in front, what they do, and in which order their layers are painted.

Lengths are picture pixels; figures keep their absolute size in every shape of picture.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from costars_world.world2.render.brush import Point
from costars_world.world2.render.identity import HANDED, LIVING

ACTIONS = ("standing", "sitting", "waving", "jumping", "arms raised")
CARRIED = ("teddy", "ball", "backpack", "vase", "cat")
PAIR_RELATIONS = (
    "and",
    "next to",
    "to the left of",
    "to the right of",
    "in front of",
    "behind",
    "holding hands with",
    "hugging",
    "carrying",
    "riding in",
)
RELATIONS = ("alone", *PAIR_RELATIONS)
CONTACT = ("holding hands with", "hugging", "carrying", "riding in")

# Room that a class takes in a row, px at scale 1.
WIDTHS = {
    "man": 50.0,
    "woman": 52.0,
    "dog": 56.0,
    "cat": 56.0,
    "robot": 50.0,
    "teddy": 46.0,
    "ball": 40.0,
    "backpack": 44.0,
    "vase": 38.0,
    "chair": 46.0,
    "car": 92.0,
}
SCALES = (0.95, 1.06)
_HELD = {"cat": (0.62, 8), "vase": (0.6, 9)}  # scale of what is carried, and its height above the ground, px
HAND_REACH = 34.0  # of a raised hand from the middle, px at scale 1
ACTION_WEIGHTS = {"standing": 0.52, "sitting": 0.12, "waving": 0.13, "jumping": 0.11, "arms raised": 0.12}


@dataclass(frozen=True)
class Spot:
    """Where one figure is: feet at (x, y), its shadow at (x, ground_y), and what it does.

    hands are picture points that the hand on the picture's left and right side reaches for, or None; with wide
    arms the elbows point outwards.
    """

    x: float
    y: float
    ground_y: float
    scale: float
    mirror: bool = False
    action: str = "standing"
    hands: tuple[Point | None, Point | None] = (None, None)
    wide_arms: bool = False


@dataclass(frozen=True)
class Layout:
    """Spots and depths in the caption's order (depth 0 is front-most), layers in painting order, contacts."""

    spots: tuple[Spot, ...]
    depths: tuple[int, ...]
    layers: tuple[tuple[int, str], ...]
    touches: tuple[tuple[int, ...], ...]


def possible_actions(class_name: str) -> tuple[str, ...]:
    """The actions that a class can do."""
    if class_name in HANDED:
        return ACTIONS
    return ("standing", "sitting", "waving", "jumping") if class_name in LIVING else ("standing",)


def possible_relations(classes: Sequence[str]) -> tuple[str, ...]:
    """The relations that the figures can be in, in their order."""
    if len(classes) == 1:
        return ("alone",)
    first, second = classes[0], classes[1]
    found = ["and", "in front of"]
    if len(classes) == 2:
        found += ["next to", "to the left of", "to the right of", "behind"]
    if first in HANDED and second in HANDED:
        found += ["holding hands with", "hugging"]
    if first in HANDED and second in CARRIED:
        found += ["carrying"]
    if first in LIVING and second == "car":
        found += ["riding in"]
    return tuple(found)


def arrange(
    rng: random.Random, classes: Sequence[str], relation: str, action: str | None, size_px: tuple[int, int]
) -> Layout:
    """Arrange figures of these classes; a relation holds between the first and the second (or the rest)."""
    spots = _spread(rng, classes, relation, size_px)
    if relation in CONTACT:
        spots = [*_joined(rng, classes, relation, spots), *spots[2:]]
    busy = 2 if relation in CONTACT else 0
    for i in range(busy, len(classes)):
        spots[i] = _acting(rng, spots[i], classes[i], action, size_px[0])
    depths = _depths(spots, relation)
    touches: list[tuple[int, ...]] = [()] * len(classes)
    if relation in CONTACT:
        touches[:2] = [(1,), (0,)]
    return Layout(tuple(spots), depths, _layers(depths, relation), tuple(touches))


def _spread(rng: random.Random, classes: Sequence[str], relation: str, size_px: tuple[int, int]) -> list[Spot]:
    """Give every figure a place in a row, or in two rows for in front of and behind."""
    width, height = size_px
    scales = [rng.uniform(*SCALES) for _ in classes]
    widths = [WIDTHS[c] * s for c, s in zip(classes, scales, strict=True)]
    order = _order(rng, len(classes), relation)
    overlap = [0.0] * (len(classes) - 1)
    for k in range(len(classes) - 1):
        a, b = order[k], order[k + 1]
        overlap[k] = _overlap(rng, relation, {a, b}, min(widths[a], widths[b]), width > height)
    total = sum(widths) - sum(overlap)
    slack = width - 4 - total
    squeeze = min(0.0, slack) / max(1, len(classes) - 1)
    margin = min(8.0, slack / 2)  # raised hands reach further than the body
    x = 2 + (rng.uniform(margin, slack - margin) if slack > 0 else 0.0)
    spots: dict[int, Spot] = {}
    for k, i in enumerate(order):
        front_row = relation not in ("in front of", "behind") or (i == 0) == (relation == "in front of")
        y = _ground(rng, height, front_row, relation in ("in front of", "behind"))
        scale = scales[i] * (1.02 if front_row else 0.96)
        spots[i] = Spot(x + widths[i] / 2, y, y, scale, rng.random() < 0.5)
        if k < len(overlap):
            x += widths[i] - overlap[k] + squeeze
    return [spots[i] for i in range(len(classes))]


def _order(rng: random.Random, count: int, relation: str) -> list[int]:
    """The figures from left to right."""
    order = list(range(count))
    if relation == "to the right of" or (
        count == 2 and relation not in ("and", "to the left of") and rng.random() < 0.5
    ):
        order.reverse()
    if count > 2 and relation == "in front of":
        order.remove(0)
        order.insert(rng.randint(0, count - 1), 0)
    return order


def _overlap(rng: random.Random, relation: str, pair: set[int], narrower: float, wide: bool) -> float:
    """How far two neighbours overlap, px; negative is a gap."""
    if relation in ("in front of", "behind") and 0 in pair:
        return narrower * rng.uniform(0.3, 0.42)
    if relation in CONTACT and pair == {0, 1}:
        return narrower * {"holding hands with": 0.02, "hugging": 0.3, "carrying": 1.0, "riding in": 1.0}[relation]
    return -rng.uniform(0, 8)


def _ground(rng: random.Random, height: int, front_row: bool, rows: bool) -> float:
    if not rows:
        return height - rng.uniform(5, 11) - (0 if height <= 128 else rng.uniform(0, 34))
    if front_row:
        return height - rng.uniform(4, 7)
    return height - (rng.uniform(15, 19) if height <= 128 else rng.uniform(36, 62))


def _acting(rng: random.Random, spot: Spot, class_name: str, action: str | None, width: int) -> Spot:
    able = possible_actions(class_name)
    if action is None:
        reach = HAND_REACH * spot.scale
        if not reach < spot.x < width - reach:
            able = tuple(a for a in able if a not in ("waving", "arms raised"))
        action = rng.choices(able, [ACTION_WEIGHTS[a] for a in able])[0]
    elif action not in able:
        action = "standing"
    lift = rng.uniform(7, 10) if action == "jumping" else 0.0
    return replace(spot, action=action, y=spot.y - lift)


def _joined(rng: random.Random, classes: Sequence[str], relation: str, spots: Sequence[Spot]) -> list[Spot]:
    """The first two spots with hands and places fitted to what joins them."""
    a, b = spots[0], spots[1]
    if relation == "carrying":
        share, lift = _HELD.get(classes[1], (0.66, 11))
        b = replace(b, x=a.x + rng.choice((-3, 3)), y=a.y - lift * a.scale, ground_y=a.ground_y, scale=a.scale * share)
        reach, low = WIDTHS[classes[1]] * b.scale * 0.47, b.y - 12 * b.scale
        return [replace(a, hands=((b.x - reach, low), (b.x + reach, low)), wide_arms=True), b]
    if relation == "riding in":
        rise = 9 if classes[0] in HANDED else 24
        return [replace(a, x=b.x - (4 if not b.mirror else -4), y=b.y - rise, ground_y=b.ground_y, action="riding"), b]
    y = max(a.y, b.y)
    behind = rng.choice((0.0, 0.5))  # one of the two stands a little further back
    a = replace(a, y=y - behind, ground_y=y - behind)
    b = replace(b, y=y - 0.5 + behind, ground_y=y - 0.5 + behind)
    left, right = (a, b) if a.x < b.x else (b, a)
    if relation == "holding hands with":
        hand = ((left.x + right.x) / 2, y - 27)
        left, right = replace(left, hands=(None, hand)), replace(right, hands=(hand, None))
    else:
        chest = 36 * min(a.scale, b.scale)
        gap = right.x - left.x
        left = replace(left, hands=((right.x - gap * 0.62, y - chest + 6), (right.x + 3, y - chest - 3)))
        right = replace(right, hands=((left.x - 3, y - chest - 3), (left.x + gap * 0.62, y - chest + 6)))
    return [left, right] if a.x < b.x else [right, left]


def _depths(spots: Sequence[Spot], relation: str) -> tuple[int, ...]:
    """Depth ranks: who stands lower in the picture is nearer; what is carried or ridden in is nearer too.

    Figures in contact have neighbouring ranks.
    """
    pair = max(spots[0].ground_y, spots[1].ground_y) if relation in CONTACT else 0.0

    def nearness(i: int) -> tuple[float, float]:
        spot = spots[i]
        if relation not in CONTACT or i > 1:
            return spot.ground_y, 0.0
        return pair, float(i) if relation in ("carrying", "riding in") else spot.ground_y

    order = sorted(range(len(spots)), key=nearness, reverse=True)
    return tuple(order.index(i) for i in range(len(spots)))


def _layers(depths: Sequence[int], relation: str) -> tuple[tuple[int, str], ...]:
    """Figures from back to front, each with its back and its front layer; joined figures interlock."""
    order = sorted(range(len(depths)), key=lambda i: -depths[i])
    layers: list[tuple[int, str]] = []
    for i in order:
        if relation not in CONTACT or i > 1:
            layers += [(i, "back"), (i, "front")]
        elif i == max((0, 1), key=lambda j: depths[j]):
            far, near = (0, 1) if depths[0] > depths[1] else (1, 0)
            if relation == "riding in":
                layers += [(1, "back"), (0, "back"), (0, "front"), (1, "front")]
            elif relation == "carrying":
                layers += [(0, "back"), (1, "back"), (1, "front"), (0, "front")]
            else:
                layers += [(far, "back"), (near, "back"), (far, "front"), (near, "front")]
    return tuple(layers)
