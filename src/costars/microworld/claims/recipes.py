"""python -m costars.microworld.claims.recipes --out DIR: how like each recipe's concepts are, and how obedient."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from costars.concepts.formats import read_card
from costars.errors import CostarsError
from costars.microworld.claims.base import PlaceSense
from costars.microworld.claims.cases import ALONE_SEED, scene_of
from costars.microworld.claims.score import Scorer, shipped_scorer
from costars.microworld.places import PLACES
from costars.microworld.train.concepts import teaching
from costars.records import check_folder, dump
from costars.scene import Scene
from costars.sheets import grid
from costars.studio import Studio, open_studio
from costars.train.lessons import Teaching, new_words
from costars.train.loop import Taught, teach
from costars.train.recipes import BUILTIN, RECIPES, Recipe
from costars.train.results import write

TAUGHT = ("ana", "bo", "rex", "bolt")
BESIDE = ("a cat", "a robot", "a man", "a dog")  # who else is asked for in every second picture
SHOWN = 6  # pictures of each concept on a sheet


@dataclass(frozen=True)
class Drawing:
    """A picture that a taught concept is asked for: prompt, place, and the class that is to stand beside it."""

    scene: Scene
    place: str
    other: str


def drawings(name: str, file: Path, count: int) -> Iterator[Drawing]:
    """Alone and beside somebody in turns, in every place, with seeds that nothing was chosen by."""
    for i in range(count):
        place = list(PLACES)[i % len(PLACES)]
        other = BESIDE[i // 2 % len(BESIDE)] if i % 2 else ""
        prompt = f"{{{name}}}{f' next to {other}' if other else ''} {PLACES[place].phrase}"
        scene = scene_of(prompt, (name,), ALONE_SEED + i, method="multi_lora")
        cast = {name: scene.cast[name].model_copy(update={"concept": str(file)})}
        yield Drawing(scene.model_copy(update={"cast": cast}), place, other.rpartition(" ")[2])


def lesson(name: str, recipe: Recipe) -> Teaching:
    """The pack's pictures of a concept, called as the recipe calls it."""
    known = teaching(name)
    trigger = new_words(name, recipe.words) if recipe.words else name
    said = [replace(e, caption=(e.caption or "").replace(name, trigger, 1)) for e in known.examples]
    return replace(known, trigger=trigger, examples=said)


def taught(studio: Studio, name: str, recipe: Recipe, file: Path) -> dict[str, Any]:
    """The card of a concept, which is taught if its file is not there yet."""
    if not file.exists():
        *_, made = teach(studio.model(BUILTIN), [lesson(name, recipe)], recipe)
        assert isinstance(made, Taught)
        write(made, [file])
    return read_card(file)


def judged(studio: Studio, scorer: Scorer, places: PlaceSense, drawing: Drawing, path: Path) -> dict[str, Any]:
    """Scores of one picture, drawn if it is not there yet: identity, and whether place and company are as asked."""
    kept = path.with_suffix(".json")
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    picture = studio.render(drawing.scene)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.image.save(path)
    (name,) = drawing.scene.cast
    cast = {name: drawing.scene.cast[name].model_copy(update={"concept": f"builtin/{name}"})}
    known = replace(picture, scene=drawing.scene.model_copy(update={"cast": cast}))
    regions = scorer.segmenter.regions(picture.image)
    score = scorer.members(known, regions)[name]
    classes = [v.identity.class_name for v in scorer.judge([(picture.image, r.mask) for r in regions])]
    beside = not drawing.other or drawing.other in classes
    facts = {
        "similarity": score.similarity,
        "attributes": score.attributes,
        "first": score.first,
        "text": places(picture.image, regions) == drawing.place and beside,
        "scene": dump(drawing.scene) | {"cast": {name: {"concept": path.parent.name}}},
    }
    kept.write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def row_of(recipe: str, cards: Sequence[dict[str, Any]], megabytes: float, facts: Sequence[dict[str, Any]]) -> Any:
    """One line of the table; figures are means over all concepts and pictures."""
    means = {key: round(float(np.mean([f[key] for f in facts])), 3) for key in ("similarity", "attributes", "first")}
    text = round(float(np.mean([f["text"] for f in facts])), 3)
    seconds = round(float(np.mean([card["seconds"] for card in cards])))
    return {"recipe": recipe, **means, "text": text, "seconds": seconds, "MB": round(megabytes, 2), "of": len(facts)}


def main(arguments: list[str] | None = None) -> None:
    """Teach and draw what is missing, then write recipes.json, recipes.md and a sheet for each recipe."""
    parser = argparse.ArgumentParser(prog="python -m costars.microworld.claims.recipes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="concepts and pictures are kept here and used again")
    parser.add_argument("--recipe", choices=[r for r in RECIPES if r != "em"], action="append", help="default: all")
    parser.add_argument("--pictures", type=int, default=20, help="of each concept")
    options = parser.parse_args(arguments)
    try:
        check_folder(options.out)
        studio = open_studio()
        scorer, places = shipped_scorer(studio.settings.builtin), PlaceSense()
        chosen = options.recipe or [name for name in RECIPES if name != "em"]
        rows = [measure(name, options.pictures, studio, scorer, places, options.out) for name in chosen]
    except CostarsError as error:
        print(f"recipes: {error}", file=sys.stderr)
        sys.exit(2)
    (options.out / "recipes.json").write_text(json.dumps(rows, indent=2) + "\n")
    lines = [" | ".join(map(str, row.values())) for row in rows]
    heads = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    (options.out / "recipes.md").write_text("".join(f"| {line} |\n" for line in heads + lines))
    print((options.out / "recipes.md").read_text())


def measure(recipe: str, pictures: int, studio: Studio, scorer: Scorer, places: PlaceSense, out: Path) -> Any:
    """Teach and draw one recipe's concepts, and write its sheet."""
    how = RECIPES[recipe][BUILTIN]
    folder = out / recipe / hashlib.sha256(repr(how).encode()).hexdigest()[:12]  # another recipe, another folder
    cards, facts, tiles, megabytes = [], [], [], 0.0
    for name in TAUGHT:
        file = folder / f"{name}.safetensors"
        cards.append(taught(studio, name, how, file))
        megabytes += file.stat().st_size / 1e6 / len(TAUGHT)
        paths = [folder / name / f"{i:02d}.png" for i in range(pictures)]
        wanted = list(drawings(name, file, pictures))
        for drawing, path in track(
            zip(wanted, paths, strict=True), f"{recipe} {name}", total=pictures, console=Console(stderr=True)
        ):
            facts.append(judged(studio, scorer, places, drawing, path))
        tiles.append([Image.open(path) for path in paths[:SHOWN]])
    grid(tiles, captions=list(TAUGHT)).save(out / f"{recipe}.png")
    return row_of(recipe, cards, megabytes, facts)


if __name__ == "__main__":
    main()
