"""Measure masks and concepts that the EM recipe learns from group images.

Each set of images is trained three times: with masks updated by every E-step, with the masks of the first E-step,
and with the true masks (the upper bound).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, count
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.functional import normalize

from costars.builtin.segmenter import WorldSegmenter
from costars.errors import CostarsError
from costars.files.output_folder import check_output_folder
from costars.images.contact_sheet import make_grid, overlay_masks
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject, make_trigger
from costars.train.em import report as em_report
from costars.train.loop import train
from costars.train.recipe import EmConfig, MaskSource, Recipe
from costars.train.recipes import BUILTIN, RECIPES
from costars.train.results import TrainingResult, write_concepts
from costars.train.task import TrainingTask
from costars.types import Region
from costars_world.benchmarks.provenance import describe_run
from costars_world.benchmarks.trained_concepts import (
    Evaluator,
    average_scores,
    format_table,
    make_concept_prompt,
    open_evaluator,
    score_prompt,
)
from costars_world.render.backgrounds import PLACES
from costars_world.render.identity import Identity, identity_from_seed
from costars_world.render.portraits import PORTRAIT_SEED
from costars_world.render.world import WorldPicture, sample_picture

SETS = ("woman man", "man dog", "cat robot", "woman cat robot", "robot man dog")
IMAGES_PER_SET = 4
MASKS: tuple[MaskSource, ...] = get_args(MaskSource)
FIRST_IDENTITY_SEED = 900


def set_classes(number: int) -> list[str]:
    """The classes of a set; from len(SETS) on the SETS come again, with other identities and other pictures."""
    return SETS[number % len(SETS)].split()


def set_identities(number: int) -> dict[str, Identity]:
    """Return {name: identity} of a set; a held-out set has no identity of the first ones."""
    tuned = range(len(SETS)) if number >= len(SETS) else ()
    taken = [identity for i in tuned for identity in set_identities(i).values()]
    first_seed = FIRST_IDENTITY_SEED + 10 * number
    return {
        c: next(v for k in count() if (v := identity_from_seed(first_seed + i + 1000 * k, c)) not in taken)
        for i, c in enumerate(set_classes(number))
    }


def draw_group_pictures(number: int) -> list[WorldPicture]:
    """Render the pictures of a set; each shows all its identities."""
    cast = list(set_identities(number).values())
    first_seed = PORTRAIT_SEED - 1000 * (number + 1)
    return [sample_picture(first_seed + i, cast=cast, detail=0.0) for i in range(IMAGES_PER_SET)]


def make_set_subjects(number: int) -> list[TrainingSubject]:
    """Make a training subject, with true masks, for each identity of a set."""
    pictures = draw_group_pictures(number)
    subjects = []
    for name, identity in set_identities(number).items():
        masks = [picture.find_figure(identity).visible_mask.astype(np.float32) for picture in pictures]
        examples = [
            Example(picture.image, None, mask, f"{i}.png")
            for i, (picture, mask) in enumerate(zip(pictures, masks, strict=True))
        ]
        subjects.append(
            TrainingSubject(name=name, class_name=identity.class_name, trigger=make_trigger(name, 1), examples=examples)
        )
    return subjects


def train_set(evaluator: Evaluator, number: int, recipe: Recipe, folder: Path) -> list[em_report.Row]:
    """Train a set unless that is done, from its checkpoint if there is one; return the history of its masks."""
    subjects = make_set_subjects(number)
    report, checkpoint = folder / em_report.REPORT, folder / "checkpoint.safetensors"
    files = [folder / f"{subject.name}.safetensors" for subject in subjects]
    resume = checkpoint.exists()
    if resume or not all(file.exists() for file in (report, *files)):
        history = em_report.load_history(subjects, checkpoint) if resume else em_report.MaskHistory(subjects)
        task = TrainingTask(model=evaluator.studio.model(BUILTIN), subjects=subjects, recipe=recipe)
        for event in train(task, checkpoint, resume=resume):
            if isinstance(event, TrainingResult):
                write_concepts(event, files)
                continue
            if event.note:
                print(event.note, file=sys.stderr)
            if history.record(event.step - 1, event.masks):
                em_report.save_history(history, folder)
        em_report.write_report(history, folder)
        checkpoint.unlink(missing_ok=True)
    rows: list[em_report.Row] = json.loads(report.read_text())["masks"]
    return rows


def measure_diversity(segmenter: WorldSegmenter, paths: Sequence[Path]) -> float:
    """Return the mean pairwise LPIPS distance (Zhang et al. 2018, arXiv 1801.03924, Eq. 1) of images of one prompt.

    All channel weights are 1, and the built-in segmenter's features replace those of AlexNet.
    """
    images = [np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 127.5 - 1 for path in paths]
    x, features = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(segmenter.device), list[Tensor]()
    with torch.no_grad():
        for layer in segmenter.net.down:
            x = layer(x)
            features.append(normalize(x, dim=1))
    distances = [
        sum(float((f[i] - f[j]).square().sum(dim=0).mean()) for f in features)
        for i, j in combinations(range(len(images)), 2)
    ]
    return float(np.mean(distances))


def measure_set(number: int, masks: MaskSource, seeds: int, evaluator: Evaluator, out: Path) -> dict[str, Any]:
    """Train and score one set with one kind of masks; returns its row of the table."""
    recipe = RECIPES["em"][BUILTIN]
    recipe = replace(recipe, em=replace(recipe.em or EmConfig(), masks=masks))
    folder = out / SETS[number].replace(" ", "+") / masks
    history = train_set(evaluator, number, recipe, folder)
    scorer = evaluator.scorer
    facts, diversities = list[dict[str, Any]](), list[float]()
    for name, identity in set_identities(number).items():
        reference = f"{number} {name}"
        scorer.references.setdefault(reference, (identity, scorer.gallery.reference_embedding(identity)))
        paths = [folder / name / f"{i:02d}.png" for i in range(seeds * len(PLACES))]
        for i, path in enumerate(track(paths, f"{folder.parent.name} {masks} {name}", console=Console(stderr=True))):
            prompt = make_concept_prompt(name, folder / f"{name}.safetensors", i)
            facts.append(score_prompt(evaluator, prompt, path, reference))
        if seeds > 1:
            diversities += [measure_diversity(scorer.segmenter, paths[i :: len(PLACES)]) for i in range(len(PLACES))]
    first, last = (float(np.mean(list(history[at]["iou"].values()))) for at in (0, -1))
    return {
        "set": folder.parent.name,
        "masks": masks,
        "first masks": round(first, 3),
        "last masks": round(last, 3),
        **average_scores(facts, "similarity", "attributes", "first", "text"),
        "diversity": round(float(np.mean(diversities)), 3) if diversities else "",
        "of": len(facts),
    }


def make_sheet(number: int, out: Path) -> Image.Image:
    """Make a sheet of a set: a row for each kind of masks, with two images and their masks, and two of each concept."""
    folder = out / SETS[number].replace(" ", "+")
    images, rows = [picture.image for picture in draw_group_pictures(number)[:2]], []
    for masks in MASKS:
        row = [overlay_masks(image, _load_masks(folder / masks, number, i)) for i, image in enumerate(images)]
        for name in set_identities(number):
            row += [Image.open(folder / masks / name / f"{i:02d}.png").convert("RGB") for i in range(2)]
        rows.append(row)
    return make_grid(rows, captions=[f"{masks} masks" for masks in MASKS])


def _load_masks(folder: Path, number: int, image: int) -> dict[str, Region]:
    regions = {}
    for depth, name in enumerate(set_identities(number)):
        with Image.open(folder / "masks" / f"{image}.{name}.png") as mask:
            regions[name] = Region(name, np.asarray(mask, dtype=np.float32) / np.float32(255), 1.0, depth)
    return regions


def main(arguments: list[str] | None = None) -> None:
    """Train and score what is missing, then write em.json, em.md and a sheet for each set."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.benchmarks.em", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="output folder; concepts and images in it are reused")
    parser.add_argument("--set", type=int, choices=range(len(SETS)), action="append", help="default: all sets")
    parser.add_argument("--masks", choices=MASKS, action="append", help="kind of masks; default: all")
    parser.add_argument("--seeds", type=int, default=2, help="number of images of each concept at each place")
    options = parser.parse_args(arguments)
    sets, kinds = options.set or range(len(SETS)), options.masks or MASKS
    try:
        check_output_folder(options.out)
        evaluator = open_evaluator()
        rows = [measure_set(number, masks, options.seeds, evaluator, options.out) for number in sets for masks in kinds]
    except CostarsError as error:
        print(f"em: {error}", file=sys.stderr)
        sys.exit(2)
    facts = {"benchmark": "em", **describe_run("python -m costars_world.benchmarks.em", []), "rows": rows}
    (options.out / "em.json").write_text(json.dumps(facts, indent=2) + "\n")
    (options.out / "em.md").write_text(format_table(rows))
    for number in sets if len(kinds) == len(MASKS) else ():
        make_sheet(number, options.out).save(options.out / f"em-{number}.png")
    print(format_table(rows))


if __name__ == "__main__":
    main()
