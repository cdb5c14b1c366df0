"""Renders pictures of one identity with masks and captions, as training data for a concept."""

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

FIGURE_COUNTS = (1, 2, 1, 3, 1, 4)  # number of figures in training pictures, in turn
MAX_HIDDEN_SHARE = 0.25
PORTRAIT_SEED = 500_000_000  # far from the seeds of all training and test pictures


def draw_portraits(
    identity: Identity, count: int, seed: int = 0, figure_counts: Sequence[int] = (1,)
) -> list[WorldPicture]:
    """Render pictures of one identity; captions name classes only.

    Every place is used once before any is used again. figure_counts gives the number of figures, in turn. The
    other figures have other classes and hide at most MAX_HIDDEN_SHARE of the identity.
    """
    rng = random.Random(f"portraits {seed}")
    places: list[str] = []
    while len(places) < count:
        places += rng.sample(list(PLACES), len(PLACES))
    return [
        _draw_portrait(rng, identity, PORTRAIT_SEED + 1000 * seed + i, place, figure_counts[i % len(figure_counts)])
        for i, place in enumerate(places[:count])
    ]


def _draw_portrait(rng: random.Random, identity: Identity, seed: int, place: str, figure_count: int) -> WorldPicture:
    for attempt in range(100):
        classes = rng.sample([c for c in CLASSES if c != identity.class_name], figure_count - 1)
        cast = [identity, *(sample_identity(rng, c) for c in classes)]
        rng.shuffle(cast)
        picture = sample_picture(seed + 100 * attempt, cast=cast, place=place, detail=0.0)
        figure = picture.find_figure(identity)
        if figure.visible_mask.sum() >= (1 - MAX_HIDDEN_SHARE) * figure.full_mask.sum():
            return picture
    raise AssertionError(f"{identity} is hidden in 100 pictures")


def write_portraits(pictures: list[WorldPicture], identity: Identity, folder: Path) -> None:
    """Write NN.png and NN.mask.png of each picture, truth.json, and captions.jsonl for training.

    Replaces the pictures of an earlier call.
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
        mask = picture.find_figure(identity).visible_mask
        Image.fromarray(mask).save(folder / f"{i:02d}.mask.png")
        entries.append({"file": name, "caption": picture.caption, "place": picture.place})
    truth = {"class_name": identity.class_name, "attributes": dict(identity.attributes), "pictures": entries}
    (folder / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")
    lines = [json.dumps({"file_name": entry["file"], "text": entry["caption"]}) for entry in entries]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """python -m costars_world.render.portraits --identity-seed N --class woman --count K --out DIR"""
    parser = argparse.ArgumentParser(prog="python -m costars_world.render.portraits", description=__doc__)
    parser.add_argument("--identity-seed", type=int, required=True, help="seed of the identity, any integer")
    parser.add_argument("--class", dest="class_name", choices=CLASSES, required=True, help="class of the identity")
    parser.add_argument("--count", type=int, default=10, help="number of pictures, at least 1")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count {options.count}: must be at least 1")
    written_before = (options.out / "truth.json").exists()
    if options.out.exists() and not written_before and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"--out {options.out}: holds files that this program did not write; choose an empty folder")
    identity = identity_from_seed(options.identity_seed, options.class_name)
    try:
        pictures = draw_portraits(identity, options.count, options.identity_seed, FIGURE_COUNTS)
        write_portraits(pictures, identity, options.out)
    except OSError as error:
        parser.error(f"--out {options.out}: cannot be written ({error.strerror}); choose another folder folder")
    print(options.out / "truth.json", file=sys.stdout)


if __name__ == "__main__":
    main()
