"""Draws one figure of any class."""

from __future__ import annotations

import random

from costars_world.render.animals import draw_animal
from costars_world.render.brush import Brush
from costars_world.render.identity import Identity
from costars_world.render.people import draw_person
from costars_world.render.robots import draw_robot


def draw_figure(brush: Brush, identity: Identity, pose: random.Random) -> None:
    """Draw one figure whose feet stand at the brush's origin; pose supplies the random limb positions."""
    _DRAW[identity.class_name](brush, identity, pose)


_DRAW = {"man": draw_person, "woman": draw_person, "dog": draw_animal, "cat": draw_animal, "robot": draw_robot}
