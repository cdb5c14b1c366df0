"""Who stands in the pictures with truth: a pool of identities to learn from and a held-out line-up."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from costars_world.world2.training.world import World

POOL_PER_CLASS = 340  # version 1 learned from 2400 identities of five classes; eleven classes here
COUNT_SHARES = {1: 0.3, 2: 0.4, 3: 0.15, 4: 0.08, 5: 0.07}  # figures in a picture with a given cast


@dataclass(frozen=True)
class Casting:
    """pool are the identities that the judge learns, line_up those that it never sees, both class by class."""

    pool: tuple[Any, ...]
    line_up: tuple[Any, ...]


def make_casting(world: World, line_up: int, pool_per_class: int = POOL_PER_CLASS) -> Casting:
    """Distinct identities of every class; a class that has fewer than wanted is repeated in the pool alone."""
    pool: list[Any] = []
    others: list[Any] = []
    for name in world.classes:
        found: dict[tuple[str, ...], Any] = {}
        rng = random.Random(f"world 2 pool {name}")
        for _ in range(50 * (line_up + pool_per_class)):
            who = world.sample_identity(rng, name)
            found.setdefault(tuple(who.attributes.values()), who)
            if len(found) == line_up + pool_per_class:
                break
        people = list(found.values())
        others += people[:line_up]
        pool += people[line_up : line_up + pool_per_class]
    return Casting(tuple(pool), tuple(others))


def draw_cast(rng: random.Random, identities: tuple[Any, ...]) -> list[int]:
    """Indices of the identities in one picture, each at most once; classes are equally likely."""
    count = rng.choices(list(COUNT_SHARES), list(COUNT_SHARES.values()))[0]
    return rng.sample(range(len(identities)), min(count, len(identities)))
