"""python -m costars_world.benchmarks.base --out DIR: does the base model draw what a prompt says?"""

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

from costars.methods.prompts import article
from costars.studio import open_studio
from costars.types import Region
from costars_world.benchmarks.score import Scorer, shipped_scorer
from costars_world.render.backgrounds import PLACES
from costars_world.render.identity import CLASS_WEIGHTS
from costars_world.render.world import draw
from costars_world.training.samples import sample, tiled

RELATIONS = ("in front of", "behind", "to the left of", "to the right of", "next to", "and")
PAIRS, CROWDS = 200, 100
STEPS = 30
EMPTY_RENDERS = 12  # of each place, from which it is known


@dataclass(frozen=True)
class Prompt:
    """What a prompt asks for; relation is empty where there are more than two."""

    classes: tuple[str, ...]
    relation: str
    place: str

    @property
    def text(self) -> str:
        """The prompt itself."""
        nouns = [article(c) for c in self.classes]
        subject = f" {self.relation} ".join(nouns) if self.relation else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
        return f"{subject} {PLACES[self.place].phrase}"


def prompts() -> Iterator[Prompt]:
    """200 prompts of two figures, then 100 of three to five; the same every time."""
    rng = random.Random("the base model's prompts")
    for i in range(PAIRS + CROWDS):
        count = 2 if i < PAIRS else 3 + i % 3
        classes = rng.choices(list(CLASS_WEIGHTS), list(CLASS_WEIGHTS.values()), k=count)
        yield Prompt(tuple(classes), RELATIONS[i % len(RELATIONS)] if count == 2 else "", list(PLACES)[i % len(PLACES)])


class PlaceSense:
    """Knows a place by its background: the nearest mean picture of renders where nobody is."""

    def __init__(self) -> None:
        self.means = {
            place: np.mean(
                [_pixels(draw(random.Random(i), [], place, [], [])[0]) for i in range(EMPTY_RENDERS)], axis=0
            )
            for place in PLACES
        }

    def __call__(self, image: Image.Image, regions: Sequence[Region]) -> str:
        """The place whose background the picture has outside its figures."""
        seen = np.ones(image.size[::-1], dtype=bool)
        for region in regions:
            seen &= region.mask < 0.5
        shown = _pixels(image)
        return min(self.means, key=lambda place: np.abs(self.means[place] - shown)[seen].mean())


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float64)


def judged(image: Image.Image, prompt: Prompt, scorer: Scorer, places: PlaceSense) -> dict[str, bool | None]:
    """What is right in a picture; depth is None where the prompt states none that can be told apart."""
    regions = scorer.segmenter.regions(image)
    found = [v.identity.class_name for v in scorer.judge([(image, r.mask) for r in regions])]
    classes = not Counter(prompt.classes) - Counter(found)
    depth = None
    if prompt.relation in RELATIONS[:2] and classes and len(set(prompt.classes)) == 2:
        one, other = (regions[found.index(c)] for c in prompt.classes)
        depth = (one.depth < other.depth) == (prompt.relation == RELATIONS[0])
    right_place = places(image, regions) == prompt.place
    return {"classes": classes, "count": len(regions) == len(prompt.classes), "place": right_place, "depth": depth}


def shares(entries: Sequence[tuple[Prompt, Mapping[str, bool | None]]]) -> dict[str, dict[str, float]]:
    """The share that is right, for pairs and for three to five."""
    out: dict[str, dict[str, float]] = {}
    for name, is_pair in (("two figures", True), ("three to five", False)):
        mine = [facts for prompt, facts in entries if (len(prompt.classes) == 2) == is_pair]
        values = {key: [v for f in mine if (v := f[key]) is not None] for key in ("classes", "count", "place", "depth")}
        out[name] = {key: round(float(np.mean(told)), 4) for key, told in values.items() if told}
    return out


def main(arguments: list[str] | None = None) -> None:
    """Draw what is missing, judge every picture, write base.json and a sheet of the first 32."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.benchmarks.base", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="pictures are kept here and used again")
    options = parser.parse_args(arguments)
    studio = open_studio()
    model, scorer, places = studio.model("builtin"), shipped_scorer(studio.settings.builtin), PlaceSense()
    folder = options.out / "base" / model.facts.sha256[:12]
    folder.mkdir(parents=True, exist_ok=True)
    entries, images = [], []
    for i, prompt in enumerate(track(list(prompts()), "base", console=Console(stderr=True))):
        path = folder / f"{i:03d}.png"
        if not path.exists():
            (image,) = sample(model, [prompt.text], steps=STEPS, seed=i)
            image.save(path.with_suffix(".part"), "PNG")
            path.with_suffix(".part").rename(path)
        with Image.open(path) as opened:
            images.append(opened.convert("RGB"))
        entries.append((prompt, judged(images[-1], prompt, scorer, places)))
    told = {
        "shares": shares(entries),
        "pictures": [{"prompt": p.text, "seed": i, **f} for i, (p, f) in enumerate(entries)],
    }
    (options.out / "base.json").write_text(json.dumps(told, indent=2) + "\n")
    tiled(images[:32]).save(options.out / "base-sheet.png")
    print(json.dumps(told["shares"], indent=2))


if __name__ == "__main__":
    main()
