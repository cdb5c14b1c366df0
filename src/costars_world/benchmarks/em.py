"""python -m costars_world.benchmarks.em --out DIR: masks and concepts learned from entangled pictures.

Each set of pictures is learned three times: with masks learned in turns with the words, with those of the
first step kept, and with the true ones (the upper bound).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
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
from costars.files.output_folder import check_folder
from costars.images.contact_sheet import grid, masks_in_colour
from costars.train.data.images import Example
from costars.train.data.subject import Teaching, new_words
from costars.train.em import report as em_report
from costars.train.loop import Taught, teach
from costars.train.recipes import BUILTIN, RECIPES, Em, MaskSource, Recipe
from costars.train.results import write
from costars.types import Region
from costars_world.benchmarks.learned import Bench, bench, drawing_of, judged, mean_of, table
from costars_world.render.backgrounds import PLACES
from costars_world.render.identity import Identity, identity_from_seed
from costars_world.render.portraits import SEED
from costars_world.render.world import WorldPicture, sample_picture

SETS = ("woman man", "man dog", "cat robot", "woman cat robot", "robot man dog")
TOGETHER = 4  # pictures of each set
MASKS: tuple[MaskSource, ...] = get_args(MaskSource)
IDENTITIES = 900  # seed of the first inhabitant of the first set


def cast_of(number: int) -> dict[str, Identity]:
    """{name: who} of one of the SETS."""
    classes = SETS[number].split()
    return {c: identity_from_seed(IDENTITIES + 10 * number + i, c) for i, c in enumerate(classes)}


def together(number: int) -> list[WorldPicture]:
    """The pictures of a set, everybody in each."""
    cast = list(cast_of(number).values())
    return [sample_picture(SEED - 1000 * (number + 1) + i, cast=cast, detail=0.0) for i in range(TOGETHER)]


def lessons(number: int) -> list[Teaching]:
    """One teaching for each of a set, with the true masks beside the pictures."""
    pictures = together(number)
    files = [f"{i}.png" for i in range(TOGETHER)]
    return [
        Teaching(
            name,
            who.class_name,
            new_words(name, 1),
            [
                Example(p.image, None, p.figure(who).visible_mask.astype(np.float32), file)
                for p, file in zip(pictures, files, strict=True)
            ],
        )
        for name, who in cast_of(number).items()
    ]


def learned(on: Bench, number: int, recipe: Recipe, folder: Path) -> list[em_report.Row]:
    """How the masks came to be; what is not taught yet is taught, from its checkpoint where there is one."""
    teachings = lessons(number)
    report, kept = folder / em_report.REPORT, folder / "checkpoint.safetensors"
    files = [folder / f"{t.name}.safetensors" for t in teachings]
    if kept.exists() or not all(file.exists() for file in (report, *files)):
        story = em_report.gone_on(teachings, kept) if kept.exists() else em_report.Story(teachings)
        for event in teach(on.studio.model(BUILTIN), teachings, recipe, kept, resume=kept.exists()):
            if isinstance(event, Taught):
                write(event, files)
                continue
            if event.note:
                print(event.note, file=sys.stderr)
            if story.hear(event.step - 1, event.masks):
                em_report.keep(story, folder)
        em_report.write(story, folder)
        kept.unlink(missing_ok=True)
    rows: list[em_report.Row] = json.loads(report.read_text())["masks"]
    return rows


def diversity(segmenter: WorldSegmenter, pictures: Sequence[Path]) -> float:
    """Mean distance of the pictures of one prompt, pair by pair: LPIPS with all its weights 1 (Zhang et al. 2018,
    arXiv 1801.03924, equation 1) on the features of the world's segmenter, which takes the place of AlexNet."""
    shown = [np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 127.5 - 1 for path in pictures]
    x, features = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).to(segmenter.device), list[Tensor]()
    with torch.no_grad():
        for layer in segmenter.net.down:
            x = layer(x)
            features.append(normalize(x, dim=1))
    apart = [
        sum(float((f[i] - f[j]).square().sum(dim=0).mean()) for f in features)
        for i, j in combinations(range(len(shown)), 2)
    ]
    return float(np.mean(apart))


def measure(number: int, masks: MaskSource, seeds: int, on: Bench, out: Path) -> dict[str, Any]:
    """Teach and draw one set in one way; returns its line of the table."""
    recipe = RECIPES["em"][BUILTIN]
    recipe = replace(recipe, em=replace(recipe.em or Em(), masks=masks))
    folder = out / SETS[number].replace(" ", "+") / masks
    story = learned(on, number, recipe, folder)
    facts, apart = list[dict[str, Any]](), list[float]()
    for name, who in cast_of(number).items():
        known = f"{number} {name}"
        on.scorer.references.setdefault(known, (who, on.scorer.gallery.reference(who)))
        paths = [folder / name / f"{i:02d}.png" for i in range(seeds * len(PLACES))]
        for i, path in enumerate(track(paths, f"{folder.parent.name} {masks} {name}", console=Console(stderr=True))):
            facts.append(judged(on, drawing_of(name, folder / f"{name}.safetensors", i), path, known))
        if seeds > 1:
            apart += [diversity(on.scorer.segmenter, paths[i :: len(PLACES)]) for i in range(len(PLACES))]
    first, last = (float(np.mean(list(story[at]["iou"].values()))) for at in (0, -1))
    scores = mean_of(facts, "similarity", "attributes", "first", "text")
    found = {"first masks": round(first, 3), "last masks": round(last, 3)}
    spread = round(float(np.mean(apart)), 3) if apart else ""
    return {"set": folder.parent.name, "masks": masks, **found, **scores, "diversity": spread, "of": len(facts)}


def sheet(number: int, out: Path) -> Image.Image:
    """Two pictures of the set with the masks found in them, then two drawn of each concept; a row for each way."""
    folder = out / SETS[number].replace(" ", "+")
    shown, rows = [p.image for p in together(number)[:2]], []
    for masks in MASKS:
        row = [masks_in_colour(image, _found(folder / masks, number, i)) for i, image in enumerate(shown)]
        for name in cast_of(number):
            row += [Image.open(folder / masks / name / f"{i:02d}.png").convert("RGB") for i in range(2)]
        rows.append(row)
    return grid(rows, captions=[f"{masks} masks" for masks in MASKS])


def _found(folder: Path, number: int, picture: int) -> dict[str, Region]:
    regions = {}
    for depth, name in enumerate(cast_of(number)):
        with Image.open(folder / "masks" / f"{picture}.{name}.png") as mask:
            regions[name] = Region(name, np.asarray(mask, dtype=np.float32) / np.float32(255), 1.0, depth)
    return regions


def main(arguments: list[str] | None = None) -> None:
    """Learn and draw what is missing, then write em.json, em.md and a sheet for each set."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.benchmarks.em", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="concepts and pictures are kept here and used again")
    parser.add_argument("--set", type=int, choices=range(len(SETS)), action="append", help="default: all")
    parser.add_argument("--masks", choices=MASKS, action="append", help="default: all three ways")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each concept in each place")
    options = parser.parse_args(arguments)
    chosen, ways = options.set or range(len(SETS)), options.masks or MASKS
    try:
        check_folder(options.out)
        on = bench()
        rows = [measure(number, masks, options.seeds, on, options.out) for number in chosen for masks in ways]
    except CostarsError as error:
        print(f"em: {error}", file=sys.stderr)
        sys.exit(2)
    (options.out / "em.json").write_text(json.dumps(rows, indent=2) + "\n")
    (options.out / "em.md").write_text(table(rows))
    for number in chosen if len(ways) == len(MASKS) else ():
        sheet(number, options.out).save(options.out / f"em-{number}.png")
    print(table(rows))


if __name__ == "__main__":
    main()
