"""Generates images of a trained concept, each once, and scores identity and prompt adherence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from costars.methods.prompts import with_article
from costars.records.png_metadata import dump
from costars.scene.scene import Scene
from costars.studio import Studio, open_studio
from costars_world.benchmarks.base import PlaceClassifier
from costars_world.benchmarks.cases import ALONE_SEED, make_scene
from costars_world.benchmarks.score import Scorer, load_scorer
from costars_world.render.backgrounds import PLACES


@dataclass(frozen=True)
class Evaluator:
    """Everything that is needed to generate and score images."""

    studio: Studio
    scorer: Scorer
    places: PlaceClassifier


def open_evaluator() -> Evaluator:
    """Open an evaluator with the shipped weights."""
    studio = open_studio()
    return Evaluator(studio, load_scorer(studio.settings.builtin), PlaceClassifier())


@dataclass(frozen=True)
class ConceptPrompt:
    """A scene of one concept at a place, beside a stranger of companion_class unless that is empty."""

    scene: Scene
    place: str
    companion_class: str

    @property
    def name(self) -> str:
        """Name of the concept."""
        (name,) = self.scene.cast
        return name


def make_concept_prompt(name: str, file: Path, i: int, companion_class: str = "") -> ConceptPrompt:
    """Make the i-th prompt for the concept in a file; places take turns, seeds are not used for any tuning."""
    place = list(PLACES)[i % len(PLACES)]
    companion = f" next to {with_article(companion_class)}" if companion_class else ""
    prompt = f"{{{name}}}{companion} {PLACES[place].phrase}"
    scene = make_scene(prompt, (name,), ALONE_SEED + i, method="multi_lora")
    cast = {name: scene.cast[name].model_copy(update={"concept": str(file)})}
    return ConceptPrompt(scene.model_copy(update={"cast": cast}), place, companion_class)


def score_prompt(evaluator: Evaluator, prompt: ConceptPrompt, path: Path, reference: str) -> dict[str, Any]:
    """Score the image of a prompt against one of the scorer's references; generates it if it is missing.

    text is whether the image shows the place and the companion.
    """
    scores = path.with_suffix(".json")
    if scores.exists():
        return dict(json.loads(scores.read_text()))
    picture = evaluator.studio.render(prompt.scene)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.image.save(path)
    name, scorer = prompt.name, evaluator.scorer
    cast = {name: prompt.scene.cast[name].model_copy(update={"concept": f"builtin/{reference}"})}
    regions = scorer.segmenter.find_regions(picture.image)
    referenced = replace(picture, scene=prompt.scene.model_copy(update={"cast": cast}))
    score = scorer.score_members(referenced, regions)[name]
    classes = [v.identity.class_name for v in scorer.judge([(picture.image, r.mask) for r in regions])]
    has_companion = not prompt.companion_class or prompt.companion_class in classes
    facts = {
        "similarity": score.similarity,
        "attributes": score.attributes,
        "first": score.first,
        "text": evaluator.places(picture.image, regions) == prompt.place and has_companion,
        "scene": dump(prompt.scene) | {"cast": {name: {"concept": path.parent.name}}},
    }
    scores.write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def average_scores(facts: Sequence[dict[str, Any]], *keys: str) -> dict[str, float]:
    """Average the scores of these keys over all images."""
    return {key: round(float(np.mean([fact[key] for fact in facts])), 3) for key in keys}


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format rows with the same keys as a Markdown table."""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(map(str, row.values())) for row in rows]
    return "".join(f"| {line} |\n" for line in lines)
