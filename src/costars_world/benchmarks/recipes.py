"""Measure identity similarity and prompt adherence of each training recipe's concepts."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from costars.concepts.load import read_card
from costars.errors import CostarsError
from costars.files.output_folder import check_output_folder
from costars.images.contact_sheet import make_grid
from costars.studio import Studio
from costars.train.data.subject import TrainingSubject, make_trigger
from costars.train.loop import train
from costars.train.recipe import Recipe
from costars.train.recipes import BUILTIN, RECIPES
from costars.train.results import TrainingResult, write_concepts
from costars.train.task import TrainingTask
from costars_world.benchmarks.cases import STEPS
from costars_world.benchmarks.provenance import describe_run
from costars_world.benchmarks.report import bootstrap_interval
from costars_world.benchmarks.trained_concepts import (
    ConceptPrompt,
    Evaluator,
    format_table,
    make_concept_prompt,
    open_evaluator,
    score_prompt,
)
from costars_world.training.concepts import PACK, make_subject

CONCEPTS = ("ana", "bo", "rex", "bolt")
COMPANIONS = ("cat", "robot", "man", "dog", "woman")  # classes of the companions in every second image
SHEET_COLUMNS = 6  # images of each concept on a sheet
SCORES = ("similarity", "attributes", "first", "text")


def make_prompts(name: str, file: Path, count: int) -> Iterator[ConceptPrompt]:
    """Make prompts of a concept alone and beside a companion of another class, in turn.

    A companion of the concept's own class could not be told from a second figure of the concept.
    """
    companions = [c for c in COMPANIONS if c != PACK[name].class_name]
    for i in range(count):
        yield make_concept_prompt(name, file, i, companions[i // 2 % len(companions)] if i % 2 else "")


def make_recipe_subject(name: str, recipe: Recipe) -> TrainingSubject:
    """Make the training subject of a pack concept, with the trigger that the recipe needs."""
    return make_subject(name, make_trigger(name, recipe.num_new_tokens) if recipe.num_new_tokens else name)


def train_if_missing(studio: Studio, name: str, recipe: Recipe, file: Path) -> dict[str, Any]:
    """Return the card of a concept; trains it first if its file is missing."""
    if not file.exists():
        task = TrainingTask(model=studio.model(BUILTIN), subjects=[make_recipe_subject(name, recipe)], recipe=recipe)
        *_, result = train(task)
        assert isinstance(result, TrainingResult)
        write_concepts(result, [file])
    return read_card(file)


def measure_recipe(recipe_name: str, num_images: int, evaluator: Evaluator, out: Path) -> dict[str, Any]:
    """Train and score one recipe's concepts, write its sheet, and return its row of the table."""
    recipe = RECIPES[recipe_name][BUILTIN]
    folder = out / recipe_name / hashlib.sha256(repr((recipe, STEPS)).encode()).hexdigest()[:12]
    cards, facts, tiles, megabytes = [], [], [], 0.0
    for name in CONCEPTS:
        file = folder / f"{name}.safetensors"
        cards.append(train_if_missing(evaluator.studio, name, recipe, file))
        megabytes += file.stat().st_size / 1e6 / len(CONCEPTS)
        paths = [folder / name / f"{i:02d}.png" for i in range(num_images)]
        pairs = zip(make_prompts(name, file, num_images), paths, strict=True)
        for prompt, path in track(pairs, f"{recipe_name} {name}", total=num_images, console=Console(stderr=True)):
            facts.append(score_prompt(evaluator, prompt, path, name))
        tiles.append([Image.open(path) for path in paths[:SHEET_COLUMNS]])
    make_grid(tiles, captions=list(CONCEPTS)).save(out / f"{recipe_name}.png")
    seconds = round(float(np.mean([card["seconds"] for card in cards])))
    # Pictures of one number have the same noise: they are resampled together.
    by_seed = [facts[i::num_images] for i in range(num_images)]
    scores = {key: bootstrap_interval([[float(f[key]) for f in seed] for seed in by_seed]) for key in SCORES}
    return {"recipe": recipe_name, **scores, "seconds": seconds, "MB": round(megabytes, 2), "of": len(facts)}


def main(arguments: list[str] | None = None) -> None:
    """Train and score what is missing, then write recipes.json, recipes.md and a sheet for each recipe."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.benchmarks.recipes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="output folder; concepts and images in it are reused")
    parser.add_argument("--recipe", choices=[r for r in RECIPES if r != "em"], action="append", help="default: all")
    parser.add_argument("--pictures", type=int, default=20, help="number of images per concept")
    options = parser.parse_args(arguments)
    try:
        check_output_folder(options.out)
        evaluator = open_evaluator()
        chosen = options.recipe or [name for name in RECIPES if name != "em"]
        rows = [measure_recipe(name, options.pictures, evaluator, options.out) for name in chosen]
    except CostarsError as error:
        print(f"recipes: {error}", file=sys.stderr)
        sys.exit(2)
    run = describe_run("python -m costars_world.benchmarks.recipes", [f"--recipe {name}" for name in chosen])
    facts = {"benchmark": "recipes", **run, "steps": STEPS, "rows": rows}
    (options.out / "recipes.json").write_text(json.dumps(facts, indent=2) + "\n")
    means = [{k: v["mean"] if isinstance(v, dict) else v for k, v in row.items()} for row in rows]
    (options.out / "recipes.md").write_text(format_table(means))
    print(format_table(means))


if __name__ == "__main__":
    main()
