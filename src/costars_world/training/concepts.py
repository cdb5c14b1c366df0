"""The concept pack: eight inhabitants taught to the built-in model, each from twelve pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from costars.concepts.load import read_card
from costars.methods.prompts import article
from costars.model.model import Model
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject
from costars.train.loop import Progress, Taught
from costars.train.loop import teach as lesson
from costars.train.recipes import BUILTIN, RECIPES, Recipe
from costars.train.results import write as write_taught
from costars_world.render.identity import Identity
from costars_world.render.portraits import FIGURE_COUNTS, draw_portraits, write_portraits
from costars_world.render.world import WorldPicture

RECIPE = RECIPES["lora"][BUILTIN]
PICTURES = 12
# What is better with other numbers than the recipe's, by twelve pictures of each alone (docs/decisions/0014).
OWN: Mapping[str, Mapping[str, Any]] = {
    "cleo": {"background_loss_weight": 0.3},
    "rex": {"background_loss_weight": 0.3},
}

PACK: dict[str, Identity] = {
    "ana": Identity(
        "woman",
        {
            "skin": "light",
            "hair_colour": "red",
            "hair_style": "long",
            "glasses": "glasses",
            "shirt_colour": "green",
            "shirt_pattern": "plain",
            "hat": "none",
        },
    ),
    "cleo": Identity(
        "woman",
        {
            "skin": "dark",
            "hair_colour": "blue",
            "hair_style": "bun",
            "glasses": "none",
            "shirt_colour": "yellow",
            "shirt_pattern": "striped",
            "hat": "none",
        },
    ),
    "eve": Identity(
        "woman",
        {
            "skin": "tan",
            "hair_colour": "black",
            "hair_style": "bob",
            "glasses": "none",
            "shirt_colour": "purple",
            "shirt_pattern": "dotted",
            "hat": "straw hat",
        },
    ),
    "bo": Identity(
        "man",
        {
            "skin": "brown",
            "hair_colour": "black",
            "hair_style": "curly",
            "glasses": "none",
            "beard": "beard",
            "shirt_colour": "orange",
            "shirt_pattern": "plain",
            "hat": "none",
        },
    ),
    "dan": Identity(
        "man",
        {
            "skin": "pale",
            "hair_colour": "blond",
            "hair_style": "spiky",
            "glasses": "sunglasses",
            "beard": "none",
            "shirt_colour": "blue",
            "shirt_pattern": "striped",
            "hat": "none",
        },
    ),
    "rex": Identity("dog", {"fur": "golden", "marking": "spotted", "ears": "floppy", "collar": "blue"}),
    "mochi": Identity("cat", {"fur": "black", "marking": "patched", "collar": "red"}),
    "bolt": Identity("robot", {"body": "pink", "head": "domed", "antenna": "two", "eyes": "visor", "chest": "heart"}),
}


def _pictures(name: str) -> list[WorldPicture]:
    return draw_portraits(PACK[name], PICTURES, seed=list(PACK).index(name), figure_counts=FIGURE_COUNTS)


def teaching(name: str, trigger: str = "") -> TrainingSubject:
    """The pictures and captions that one concept of the pack is taught from, called by its name or this trigger."""
    who, trigger = PACK[name], trigger or name
    stranger, known = article(who.class_name), article(f"{trigger} {who.class_name}")
    examples = [
        Example(p.image, p.caption.replace(stranger, known, 1), p.find_figure(who).visible_mask.astype(np.float32))
        for p in _pictures(name)
    ]
    return TrainingSubject(name, who.class_name, trigger, examples)


def recipe_of(name: str) -> Recipe:
    """How this concept of the pack is taught."""
    return replace(RECIPE, **OWN.get(name, {}))


def is_of(folder: Path, name: str, model: Model) -> bool:
    """Whether this concept was taught to this very model by this recipe."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        return False
    card = read_card(path)
    return card.get("base_sha256") == model.facts.sha256 and card.get("recipe") == asdict(recipe_of(name))


def teach(model: Model, folder: Path, name: str) -> Iterator[Progress]:
    """Teach one concept of the pack; writes NAME.safetensors and its reference pictures in NAME/."""
    write_portraits(_pictures(name), PACK[name], folder / name)
    for event in lesson(model, [teaching(name)], recipe_of(name)):
        if isinstance(event, Taught):
            write_taught(event, [folder / f"{name}.safetensors"])
        else:
            yield event
