"""Who appears in a scene: how many figures fit a shape, in which relation, and of which classes."""

from __future__ import annotations

import random
from collections.abc import Mapping

from costars_world.world2.render.identity import (
    CLASSES,
    HANDED,
    LIVING,
    Identity,
    sample_class,
    sample_identity,
)
from costars_world.world2.render.layout import CARRIED, WIDTHS

SHAPES = ((128, 128), (192, 128), (256, 128), (128, 192))  # (width, height) px

# How often a picture of each shape holds 1 to 5 figures.
COUNT_WEIGHTS: Mapping[tuple[int, int], Mapping[int, float]] = {
    (128, 128): {1: 0.36, 2: 0.6, 3: 0.04},
    (192, 128): {1: 0.04, 2: 0.3, 3: 0.5, 4: 0.16},
    (256, 128): {2: 0.1, 3: 0.25, 4: 0.4, 5: 0.25},
    (128, 192): {1: 0.25, 2: 0.5, 3: 0.25},
}
PAIR_WEIGHTS: Mapping[str, float] = {
    "and": 0.14,
    "next to": 0.1,
    "to the left of": 0.11,
    "to the right of": 0.11,
    "in front of": 0.13,
    "behind": 0.11,
    "holding hands with": 0.08,
    "hugging": 0.08,
    "carrying": 0.08,
    "riding in": 0.06,
}
CROWD_WEIGHTS: Mapping[str, float] = {
    "and": 0.52,
    "in front of": 0.2,
    "holding hands with": 0.08,
    "hugging": 0.07,
    "carrying": 0.07,
    "riding in": 0.06,
}
MOST_CROWDED = 1.12  # figures may be this much wider together than the picture


def sample_cast(
    rng: random.Random, size_px: tuple[int, int], count: int | None, relation: str | None
) -> tuple[list[Identity], str]:
    """Draw the figures of a scene, in the caption's order, and their relation."""
    if count is None:
        weights = COUNT_WEIGHTS.get(size_px, COUNT_WEIGHTS[(128, 128)])
        if relation == "alone":
            weights = {1: 1.0}
        elif relation is not None:  # most relations hold between two; some also in a crowd
            weights = {k: v for k, v in weights.items() if k == 2 or (k > 2 and relation in CROWD_WEIGHTS)}
        count = rng.choices(list(weights), list(weights.values()))[0]
    if relation is None:
        table = {1: {"alone": 1.0}, 2: PAIR_WEIGHTS}.get(count, CROWD_WEIGHTS)
        relation = rng.choices(list(table), list(table.values()))[0]
    for _ in range(40):
        classes = _classes(rng, count, relation)
        if _room(classes, relation) <= size_px[0] * MOST_CROWDED:
            break
    return [sample_identity(rng, c) for c in classes], relation


def _classes(rng: random.Random, count: int, relation: str) -> list[str]:
    """Classes that can be in the relation."""
    first: list[str] = []
    if relation in ("holding hands with", "hugging"):
        first = [sample_class(rng, HANDED), sample_class(rng, HANDED)]
    elif relation == "carrying":
        first = [sample_class(rng, HANDED), sample_class(rng, CARRIED)]
    elif relation == "riding in":
        first = [sample_class(rng, LIVING), "car"]
    return first + [sample_class(rng, CLASSES) for _ in range(count - len(first))]


def _room(classes: list[str], relation: str) -> float:
    """The width that the figures need side by side, px."""
    total = sum(WIDTHS[c] for c in classes)
    if relation in ("carrying", "riding in"):
        total -= min(WIDTHS[classes[0]], WIDTHS[classes[1]])
    return total
