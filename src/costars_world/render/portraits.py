"""Pictures of one inhabitant, with the truth about them: material to teach a concept from."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from costars_world.render.backgrounds import PLACES
from costars_world.render.identity import CLASSES, Identity, identity_from_seed, sample_identity
from costars_world.render.world import WorldPicture, sample_picture

CROWDS = (1, 2, 1, 3, 1, 4)  # how many figures there are in the pictures that one learns from
MOST_HIDDEN = 0.25
SEED = 500_000_000  # far from the pictures that the models are trained and tested on


def portraits(who: Identity, count: int, seed: int = 0, crowds: Sequence[int] = (1,)) -> list[WorldPicture]:
    """Pictures of one identity, each place before any place again; captions hold class words only.

    How many figures there are is taken from crowds in turns; the others are strangers of other classes, who
    hide no more than MOST_HIDDEN of the figure.
    """
    rng = random.Random(f"portraits {seed}")
    places: list[str] = []
    while len(places) < count:
        places += rng.sample(list(PLACES), len(PLACES))
    return [
        _portrait(rng, who, SEED + 1000 * seed + i, place, crowds[i % len(crowds)])
        for i, place in enumerate(places[:count])
    ]


def _portrait(rng: random.Random, who: Identity, seed: int, place: str, crowd: int) -> WorldPicture:
    for attempt in range(100):
        classes = rng.sample([c for c in CLASSES if c != who.class_name], crowd - 1)
        cast = [who, *(sample_identity(rng, c) for c in classes)]
        rng.shuffle(cast)
        picture = sample_picture(seed + 100 * attempt, cast=cast, place=place, detail=0.0)
        figure = picture.figure(who)
        if figure.visible_mask.sum() >= (1 - MOST_HIDDEN) * figure.full_mask.sum():
            return picture
    raise AssertionError(f"{who} is always hidden")


def write(pictures: list[WorldPicture], who: Identity, folder: Path) -> None:
    """NN.png for each picture, NN.mask.png for its figure, truth.json, and captions.jsonl to train from.

    An older set there is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "truth.json").exists():
        for entry in json.loads((folder / "truth.json").read_text())["pictures"]:
            (folder / entry["file"]).unlink(missing_ok=True)
            (folder / entry["file"]).with_suffix(".mask.png").unlink(missing_ok=True)
    entries = []
    for i, picture in enumerate(pictures):
        name = f"{i:02d}.png"
        picture.image.save(folder / name)
        mask = picture.figure(who).visible_mask
        Image.fromarray(mask).save(folder / f"{i:02d}.mask.png")
        entries.append({"file": name, "caption": picture.caption, "place": picture.place})
    truth = {"class_name": who.class_name, "attributes": dict(who.attributes), "pictures": entries}
    (folder / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")
    lines = [json.dumps({"file_name": entry["file"], "text": entry["caption"]}) for entry in entries]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """python -m costars_world.render.portraits --identity-seed N --class woman --count K --out DIR"""
    parser = argparse.ArgumentParser(prog="python -m costars_world.render.portraits", description=__doc__)
    parser.add_argument("--identity-seed", type=int, required=True, help="which inhabitant; any whole number")
    parser.add_argument("--class", dest="class_name", choices=CLASSES, required=True)
    parser.add_argument("--count", type=int, default=10, help="how many pictures, at least 1")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count {options.count}: want at least 1")
    ours = (options.out / "truth.json").exists()
    if options.out.exists() and not ours and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"--out {options.out}: holds what this did not write; choose a new or empty folder")
    who = identity_from_seed(options.identity_seed, options.class_name)
    try:
        write(portraits(who, options.count, options.identity_seed, CROWDS), who, options.out)
    except OSError as error:
        parser.error(f"--out {options.out}: cannot be written ({error.strerror}); choose another")
    print(options.out / "truth.json", file=sys.stdout)


if __name__ == "__main__":
    main()
