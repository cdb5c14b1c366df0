"""python -m costars_world.benchmarks.recipes --out DIR: how like each recipe's concepts are, and how obedient."""

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
from costars.train.loop import Taught, teach
from costars.train.recipes import BUILTIN, RECIPES, Recipe
from costars.train.results import write
from costars_world.benchmarks.learned import Bench, Drawing, bench, drawing_of, judged, mean_of, table
from costars_world.training.concepts import teaching

TAUGHT = ("ana", "bo", "rex", "bolt")
BESIDE = ("cat", "robot", "man", "dog")  # who else is asked for in every second picture
SHOWN = 6  # pictures of each concept on a sheet


def drawings(name: str, file: Path, count: int) -> Iterator[Drawing]:
    """Alone and beside somebody in turns."""
    for i in range(count):
        yield drawing_of(name, file, i, BESIDE[i // 2 % len(BESIDE)] if i % 2 else "")


def lesson(name: str, recipe: Recipe) -> TrainingSubject:
    """The pack's pictures of a concept, called as the recipe calls it."""
    return teaching(name, make_trigger(name, recipe.num_new_tokens) if recipe.num_new_tokens else name)


def taught(studio: Studio, name: str, recipe: Recipe, file: Path) -> dict[str, Any]:
    """The card of a concept, which is taught if its file is not there yet."""
    if not file.exists():
        *_, made = teach(studio.model(BUILTIN), [lesson(name, recipe)], recipe)
        assert isinstance(made, Taught)
        write(made, [file])
    return read_card(file)


def measure(recipe: str, pictures: int, on: Bench, out: Path) -> dict[str, Any]:
    """Teach and draw one recipe's concepts, write its sheet, and return its line of the table."""
    how = RECIPES[recipe][BUILTIN]
    folder = out / recipe / hashlib.sha256(repr(how).encode()).hexdigest()[:12]  # another recipe, another folder
    cards, facts, tiles, megabytes = [], [], [], 0.0
    for name in TAUGHT:
        file = folder / f"{name}.safetensors"
        cards.append(taught(on.studio, name, how, file))
        megabytes += file.stat().st_size / 1e6 / len(TAUGHT)
        paths = [folder / name / f"{i:02d}.png" for i in range(pictures)]
        wanted = zip(drawings(name, file, pictures), paths, strict=True)
        for drawing, path in track(wanted, f"{recipe} {name}", total=pictures, console=Console(stderr=True)):
            facts.append(judged(on, drawing, path, name))
        tiles.append([Image.open(path) for path in paths[:SHOWN]])
    make_grid(tiles, captions=list(TAUGHT)).save(out / f"{recipe}.png")
    seconds = round(float(np.mean([card["seconds"] for card in cards])))
    scores = mean_of(facts, "similarity", "attributes", "first", "text")
    return {"recipe": recipe, **scores, "seconds": seconds, "MB": round(megabytes, 2), "of": len(facts)}


def main(arguments: list[str] | None = None) -> None:
    """Teach and draw what is missing, then write recipes.json, recipes.md and a sheet for each recipe."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.benchmarks.recipes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="concepts and pictures are kept here and used again")
    parser.add_argument("--recipe", choices=[r for r in RECIPES if r != "em"], action="append", help="default: all")
    parser.add_argument("--pictures", type=int, default=20, help="of each concept")
    options = parser.parse_args(arguments)
    try:
        check_output_folder(options.out)
        on = bench()
        chosen = options.recipe or [name for name in RECIPES if name != "em"]
        rows = [measure(name, options.pictures, on, options.out) for name in chosen]
    except CostarsError as error:
        print(f"recipes: {error}", file=sys.stderr)
        sys.exit(2)
    (options.out / "recipes.json").write_text(json.dumps(rows, indent=2) + "\n")
    (options.out / "recipes.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
