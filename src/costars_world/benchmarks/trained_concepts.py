"""Pictures that a taught concept is asked for, drawn once and judged: is it itself, and is the rest as asked?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from costars.methods.prompts import article
from costars.records.png_metadata import dump
from costars.scene.scene import Scene
from costars.studio import Studio, open_studio
from costars_world.benchmarks.base import PlaceSense
from costars_world.benchmarks.cases import ALONE_SEED, scene_of
from costars_world.benchmarks.score import Scorer, shipped_scorer
from costars_world.render.backgrounds import PLACES


@dataclass(frozen=True)
class Bench:
    """What a picture is drawn with and judged by."""

    studio: Studio
    scorer: Scorer
    places: PlaceSense


def bench() -> Bench:
    """The shipped weights of all of them."""
    studio = open_studio()
    return Bench(studio, shipped_scorer(studio.settings.builtin), PlaceSense())


@dataclass(frozen=True)
class Drawing:
    """A picture that a concept is asked for: its place, and the class that is to stand beside it, or nobody."""

    scene: Scene
    place: str
    other: str

    @property
    def name(self) -> str:
        """Of the concept."""
        (name,) = self.scene.cast
        return name


def drawing_of(name: str, file: Path, i: int, other: str = "") -> Drawing:
    """The i-th picture of the concept in this file; each place in turns, with seeds that nothing was chosen by."""
    place = list(PLACES)[i % len(PLACES)]
    prompt = f"{{{name}}}{f' next to {article(other)}' if other else ''} {PLACES[place].phrase}"
    scene = scene_of(prompt, (name,), ALONE_SEED + i, method="multi_lora")
    cast = {name: scene.cast[name].model_copy(update={"concept": str(file)})}
    return Drawing(scene.model_copy(update={"cast": cast}), place, other)


def judged(on: Bench, drawing: Drawing, path: Path, known: str) -> dict[str, Any]:
    """Scores of one picture, drawn if it is not there yet, against the references that the scorer knows so.

    text says whether the place and everybody who was asked for are there.
    """
    kept = path.with_suffix(".json")
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    picture = on.studio.render(drawing.scene)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.image.save(path)
    name = drawing.name
    cast = {name: drawing.scene.cast[name].model_copy(update={"concept": f"builtin/{known}"})}
    regions = on.scorer.segmenter.regions(picture.image)
    score = on.scorer.members(replace(picture, scene=drawing.scene.model_copy(update={"cast": cast})), regions)[name]
    classes = [v.identity.class_name for v in on.scorer.judge([(picture.image, r.mask) for r in regions])]
    beside = not drawing.other or drawing.other in classes
    facts = {
        "similarity": score.similarity,
        "attributes": score.attributes,
        "first": score.first,
        "text": on.places(picture.image, regions) == drawing.place and beside,
        "scene": dump(drawing.scene) | {"cast": {name: {"concept": path.parent.name}}},
    }
    kept.write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def mean_of(facts: Sequence[dict[str, Any]], *keys: str) -> dict[str, float]:
    """The mean of each of these scores over all pictures."""
    return {key: round(float(np.mean([fact[key] for fact in facts])), 3) for key in keys}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of one shape as Markdown."""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(map(str, row.values())) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)
