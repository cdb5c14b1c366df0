"""A few rendered pictures, shared by the tests of the training."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass

import pytest

from costars_world.world2.training.cast import Casting, make_casting
from costars_world.world2.training.plan import Counts, Plan, make_plan
from costars_world.world2.training.rendering import Job, render_slots
from costars_world.world2.training.store import Store, make_store
from costars_world.world2.training.world import World, load_world

COUNTS = Counts(line_up=2, portraits=1, held_out=10, truth=16, plain=10)


@dataclass(frozen=True)
class Pictures:
    world: World
    plan: Plan
    store: Store
    casting: Casting


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    world = load_world()
    plan = make_plan(COUNTS, len(world.classes))
    store = make_store(plan, max(len(table) for table in world.attributes.values()))
    casting = make_casting(world, COUNTS.line_up, pool_per_class=4)
    counter = multiprocessing.get_context("fork").Value("q", 0)
    render_slots(Job(plan, store, world, casting, COUNTS.portraits, counter))
    return Pictures(world, plan, store, casting)
