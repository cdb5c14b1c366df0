"""Measure how often the built-in base model draws what a prompt says."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from costars.methods.prompts import with_article
from costars.studio import open_studio
from costars.types import Region
from costars_world.benchmarks.cases import STEPS
from costars_world.benchmarks.provenance import describe_run
from costars_world.benchmarks.report import share_interval
from costars_world.benchmarks.score import Scorer, load_scorer
from costars_world.render.backgrounds import PLACES
from costars_world.render.identity import CLASS_WEIGHTS
from costars_world.render.world import draw_scene
from costars_world.training.samples import sample_images, tile_images

RELATIONS = ("in front of", "behind", "to the left of", "to the right of", "next to", "and")
FRONT, BEHIND, LEFT, RIGHT = RELATIONS[:4]
NUM_PAIRS, NUM_GROUPS = 102, 48
RENDERS_PER_PLACE = 12  # backgrounds that PlaceClassifier averages
SCORES = ("classes", "count", "place", "depth", "side")


@dataclass(frozen=True)
class Prompt:
    """Classes in a relation at a place; relation is empty for more than two classes."""

    classes: tuple[str, ...]
    relation: str
    place: str

    @property
    def text(self) -> str:
        """The prompt's text."""
        nouns = [with_article(c) for c in self.classes]
        subject = f" {self.relation} ".join(nouns) if self.relation else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
        return f"{subject} {PLACES[self.place].phrase}"


def make_prompts() -> Iterator[Prompt]:
    """Make NUM_PAIRS prompts of two figures, then NUM_GROUPS of three to five; always the same."""
    rng = random.Random("the base model's prompts")
    for i in range(NUM_PAIRS + NUM_GROUPS):
        count = 2 if i < NUM_PAIRS else 3 + i % 3
        classes = rng.choices(list(CLASS_WEIGHTS), list(CLASS_WEIGHTS.values()), k=count)
        yield Prompt(tuple(classes), RELATIONS[i % len(RELATIONS)] if count == 2 else "", list(PLACES)[i % len(PLACES)])


class PlaceClassifier:
    """Classifies the place of an image by the nearest mean background."""

    def __init__(self) -> None:
        self.means = {
            place: np.mean(
                [_to_pixels(draw_scene(random.Random(i), [], place, [], [])[0]) for i in range(RENDERS_PER_PLACE)],
                axis=0,
            )
            for place in PLACES
        }

    def __call__(self, image: Image.Image, regions: Sequence[Region]) -> str:
        """Return the place with the most similar background outside the regions."""
        background = np.ones(image.size[::-1], dtype=bool)
        for region in regions:
            background &= region.mask < 0.5
        pixels = _to_pixels(image)
        return min(self.means, key=lambda place: np.abs(self.means[place] - pixels)[background].mean())


def _to_pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def score_image(image: Image.Image, prompt: Prompt, scorer: Scorer, places: PlaceClassifier) -> dict[str, bool | None]:
    """Return which parts of the prompt an image shows.

    depth ("in front of", "behind") and side ("to the left of", "to the right of") are None if the prompt does not
    state them, and where they cannot be judged: figures of one class cannot be told apart, nor one that is missing or
    drawn twice.
    """
    regions = scorer.segmenter.find_regions(image)
    found = [v.identity.class_name for v in scorer.judge([(image, r.mask) for r in regions])]
    scores: dict[str, bool | None] = {
        "classes": not Counter(prompt.classes) - Counter(found),
        "count": len(regions) == len(prompt.classes),
        "place": places(image, regions) == prompt.place,
        "depth": None,
        "side": None,
    }
    if len(set(prompt.classes)) == 2 and all(found.count(c) == 1 for c in prompt.classes):
        one, other = (regions[found.index(c)] for c in prompt.classes)
        if prompt.relation in (FRONT, BEHIND):
            scores["depth"] = (one.depth < other.depth) == (prompt.relation == FRONT)
        elif prompt.relation in (LEFT, RIGHT):
            scores["side"] = (_centre_x(one) < _centre_x(other)) == (prompt.relation == LEFT)
    return scores


def _centre_x(region: Region) -> float:
    return float(np.nonzero(region.mask >= 0.5)[1].mean())


def count_by_group(
    entries: Sequence[tuple[Prompt, Mapping[str, bool | None]]],
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Return the share of correct images with its interval, for two figures and for three to five.

    stated is the number of prompts that say anything about a score, n the number of images where it could be judged.
    """
    shares: dict[str, dict[str, dict[str, float | int]]] = {}
    stating = {"depth": (FRONT, BEHIND), "side": (LEFT, RIGHT)}
    for name, is_pair in (("two figures", True), ("three to five", False)):
        group = [(prompt, scores) for prompt, scores in entries if (len(prompt.classes) == 2) == is_pair]
        shares[name] = {}
        for key in SCORES:
            judged = [v for _, scores in group if (v := scores[key]) is not None]
            stated = sum(key not in stating or prompt.relation in stating[key] for prompt, _ in group)
            if judged:
                shares[name][key] = {"stated": stated} | share_interval(sum(judged), len(judged))
    return shares


def main(arguments: list[str] | None = None) -> None:
    """Generate missing images, score all, and write base.json and a sheet of the first 32."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.benchmarks.base", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="output folder; images in it are reused")
    options = parser.parse_args(arguments)
    studio = open_studio()
    model, scorer, places = studio.model("builtin"), load_scorer(studio.settings.builtin), PlaceClassifier()
    folder = options.out / "base" / f"{model.info.sha256[:12]}-{STEPS}"
    folder.mkdir(parents=True, exist_ok=True)
    entries, images = [], []
    for i, prompt in enumerate(track(list(make_prompts()), "base", console=Console(stderr=True))):
        path = folder / f"{i:03d}.png"
        if not path.exists():
            (image,) = sample_images(model, [prompt.text], steps=STEPS, seed=i)
            image.save(path.with_suffix(".part"), "PNG")
            path.with_suffix(".part").rename(path)
        with Image.open(path) as opened:
            images.append(opened.convert("RGB"))
        entries.append((prompt, score_image(images[-1], prompt, scorer, places)))
    report = {
        "benchmark": "base",
        **describe_run("python -m costars_world.benchmarks.base", []),
        "steps": STEPS,
        "shares": count_by_group(entries),
        "pictures": [{"prompt": p.text, "seed": i, **scores} for i, (p, scores) in enumerate(entries)],
    }
    (options.out / "base.json").write_text(json.dumps(report, indent=2) + "\n")
    tile_images(images[:32]).save(options.out / "base-sheet.png")
    print(json.dumps(report["shares"], indent=2))


if __name__ == "__main__":
    main()
