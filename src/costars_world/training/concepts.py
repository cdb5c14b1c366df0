"""The concept pack: eight identities, each trained on the built-in model from twelve pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from costars.concepts.load import read_card
from costars.methods.prompts import with_article
from costars.model.model import Model
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject
from costars.train.loop import Progress
from costars.train.loop import train as train_subjects
from costars.train.recipe import Recipe
from costars.train.recipes import BUILTIN, RECIPES
from costars.train.results import TrainingResult, write_concepts
from costars.train.task import TrainingTask
from costars_world.render.identity import Identity
from costars_world.render.portraits import FIGURE_COUNTS, draw_portraits, write_portraits
from costars_world.render.world import WorldPicture

RECIPE = RECIPES["lora"][BUILTIN]
PICTURES = 12
# Settings that gave better results than the recipe's on twelve pictures of the concept alone (docs/decisions/0014).
RECIPE_OVERRIDES: Mapping[str, Mapping[str, Any]] = {
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


def _draw_pictures(name: str) -> list[WorldPicture]:
    return draw_portraits(PACK[name], PICTURES, seed=list(PACK).index(name), figure_counts=FIGURE_COUNTS)


def make_subject(name: str, trigger: str = "") -> TrainingSubject:
    """Make the training subject of a concept of the pack; the trigger is its name by default."""
    identity, trigger = PACK[name], trigger or name
    plain, triggered = with_article(identity.class_name), with_article(f"{trigger} {identity.class_name}")
    examples = [
        Example(
            p.image, p.caption.replace(plain, triggered, 1), p.find_figure(identity).visible_mask.astype(np.float32)
        )
        for p in _draw_pictures(name)
    ]
    return TrainingSubject(name=name, class_name=identity.class_name, trigger=trigger, examples=examples)


def recipe_for(name: str) -> Recipe:
    """Return the recipe of a concept of the pack."""
    return replace(RECIPE, **RECIPE_OVERRIDES.get(name, {}))


def is_up_to_date(folder: Path, name: str, model: Model) -> bool:
    """Whether the folder has this concept, trained on this model with the current recipe."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        return False
    card = read_card(path)
    return card.get("base_sha256") == model.info.sha256 and card.get("recipe") == asdict(recipe_for(name))


def train(model: Model, folder: Path, name: str) -> Iterator[Progress]:
    """Train one concept of the pack; writes NAME.safetensors and its reference pictures in NAME/."""
    write_portraits(_draw_pictures(name), PACK[name], folder / name)
    task = TrainingTask(model=model, subjects=[make_subject(name)], recipe=recipe_for(name))
    for event in train_subjects(task):
        if isinstance(event, TrainingResult):
            write_concepts(event, [folder / f"{name}.safetensors"])
        else:
            yield event
