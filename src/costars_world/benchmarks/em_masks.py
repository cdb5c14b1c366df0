"""Measure the masks of the EM recipe on held-out group images, without drawing its concepts.

The E-step was tuned on the SETS of em.py. Here every set has other identities and other images. Each is measured with
masks from attention alone (VCD's E-step) and with the recipe's own E-step, before training and after some steps in
which only words are trained. The change that the other E-step makes is told apart from the change that alternating
E-steps with training makes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from costars.errors import CostarsError
from costars.files.output_folder import check_output_folder
from costars.model.model import Model
from costars.studio import open_studio
from costars.train.em.report import MaskHistory
from costars.train.loop import train
from costars.train.recipe import EmConfig, Recipe
from costars.train.recipes import BUILTIN, RECIPES
from costars.train.results import TrainingResult
from costars.train.task import TrainingTask
from costars_world.benchmarks.em import SETS, make_set_subjects, set_classes
from costars_world.benchmarks.provenance import describe_run
from costars_world.benchmarks.report import bootstrap_interval

FIRST_HELD_OUT = len(SETS)  # sets 0 to 4 are those that the E-step was tuned on
NUM_SETS = 10
STEPS = 50  # of training before the last E-step; the recipe refreshes its masks every 50 steps
ATTENTION, OWN = "attention alone", "recipe"
IoU = dict[str, float]  # {step: mean IoU over the set's images and concepts}


def make_recipe(evidence: str) -> Recipe:
    """The built-in EM recipe with one kind of E-step."""
    recipe = RECIPES["em"][BUILTIN]
    em = recipe.em or EmConfig()
    return replace(recipe, em=replace(em, estep=replace(em.estep, use_likelihood=evidence == OWN)))


def measure_masks(model: Model, number: int, recipe: Recipe, steps: int) -> IoU:
    """Train one set for this many steps; returns the IoU of every E-step's masks with the truth."""
    subjects = make_set_subjects(number)
    history = MaskHistory(subjects)
    events = train(TrainingTask(model=model, subjects=subjects, recipe=replace(recipe, steps=steps + 1)))
    for event in events:
        if isinstance(event, TrainingResult):
            break
        history.record(event.step - 1, event.masks)
        if event.step > steps:
            break
    events.close()
    return {str(row["step"]): round(float(np.mean(list(row["iou"].values()))), 4) for row in history.rows}


def measure_sets(model: Model, numbers: Sequence[int], steps: int, out: Path) -> Iterator[dict[str, Any]]:
    """Yield {set, number, evidence, iou} of each set and kind of E-step; those of an earlier run are read."""
    for number in numbers:
        for evidence in (ATTENTION, OWN):
            path = out / "em-masks" / f"{number:02d}-{evidence.split()[0]}-{steps}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                iou = measure_masks(model, number, make_recipe(evidence), steps)
                row = {"set": ", ".join(set_classes(number)), "number": number, "evidence": evidence, "iou": iou}
                path.with_suffix(".part").write_text(json.dumps(row))
                path.with_suffix(".part").rename(path)
            yield json.loads(path.read_text())


def decompose(rows: Sequence[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """Mean IoUs over sets and the differences between them, with intervals that resample sets."""
    first, last = "0", str(steps)
    by_set: dict[int, dict[str, IoU]] = {}
    for row in rows:
        by_set.setdefault(row["number"], {})[row["evidence"]] = row["iou"]

    def interval(of: Mapping[str, tuple[str, str]], sign: Mapping[str, int]) -> dict[str, float | int] | None:
        terms = [[sum(sign[k] * found[of[k][0]][of[k][1]] for k in of)] for found in by_set.values()]
        return bootstrap_interval(terms)

    def mean(evidence: str, step: str) -> dict[str, float | int] | None:
        return interval({"a": (evidence, step)}, {"a": 1})

    def difference(a: tuple[str, str], b: tuple[str, str]) -> dict[str, float | int] | None:
        return interval({"a": a, "b": b}, {"a": 1, "b": -1})

    return {
        "iou": {
            evidence: {"first masks": mean(evidence, first), f"{steps} steps": mean(evidence, last)}
            for evidence in (ATTENTION, OWN)
        },
        "differences": {
            "all: recipe with training - frozen attention masks": difference((OWN, last), (ATTENTION, first)),
            "other E-step, before training": difference((OWN, first), (ATTENTION, first)),
            "alternation, recipe": difference((OWN, last), (OWN, first)),
            "alternation, attention alone": difference((ATTENTION, last), (ATTENTION, first)),
        },
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, then write em-masks.json."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.benchmarks.em_masks", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="output folder; measured sets in it are reused")
    parser.add_argument("--sets", type=int, default=NUM_SETS, help="number of held-out sets")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps before the last E-step")
    options = parser.parse_args(arguments)
    if options.sets < 1 or options.steps < 1:
        parser.error(f"--sets {options.sets} --steps {options.steps}: both must be at least 1")
    numbers = range(FIRST_HELD_OUT, FIRST_HELD_OUT + options.sets)
    try:
        check_output_folder(options.out)
        measured = measure_sets(open_studio().model(BUILTIN), numbers, options.steps, options.out)
        rows = list(track(measured, "em-masks", total=2 * options.sets, console=Console(stderr=True)))
    except CostarsError as error:
        print(f"em_masks: {error}", file=sys.stderr)
        sys.exit(2)
    run = describe_run(
        "python -m costars_world.benchmarks.em_masks", ["--sets", str(options.sets), "--steps", str(options.steps)]
    )
    facts = {"benchmark": "em-masks", **run, **decompose(rows, options.steps), "sets": rows}
    (options.out / "em-masks.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps({key: facts[key] for key in ("iou", "differences")}, indent=2))


if __name__ == "__main__":
    main()
