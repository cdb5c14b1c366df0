"""Pictures of one inhabitant, with the truth about them: material to teach a concept from."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from costars.microworld.identity import CLASSES, Identity, identity_from_seed
from costars.microworld.places import PLACES
from costars.microworld.world import WorldPicture, sample_picture

# How large a figure is drawn that one learns from: as alone, as one of two, of three, and of four.
SIZES = ((1.1, 1.32), (0.95, 1.1), (0.8, 0.95), (0.66, 0.8))
SEED = 500_000_000  # far from the pictures that the models are trained and tested on


def portraits(
    who: Identity, count: int, seed: int = 0, sizes: Sequence[tuple[float, float] | None] = (None,)
) -> list[WorldPicture]:
    """Pictures of one identity alone, each place before any place again; captions hold class words only.

    The sizes are taken in turns.
    """
    rng = random.Random(f"portraits {seed}")
    places: list[str] = []
    while len(places) < count:
        places += rng.sample(list(PLACES), len(PLACES))
    return [
        sample_picture(SEED + 1000 * seed + i, cast=[who], place=place, detail=0.0, sizes=sizes[i % len(sizes)])
        for i, place in enumerate(places[:count])
    ]


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
        mask = picture.figures[0].visible_mask
        Image.fromarray(mask).save(folder / f"{i:02d}.mask.png")
        entries.append({"file": name, "caption": picture.caption, "place": picture.place})
    truth = {"class_name": who.class_name, "attributes": dict(who.attributes), "pictures": entries}
    (folder / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")
    lines = [json.dumps({"file_name": entry["file"], "text": entry["caption"]}) for entry in entries]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """python -m costars.microworld.pictures --identity-seed N --class woman --count K --out DIR"""
    parser = argparse.ArgumentParser(prog="python -m costars.microworld.pictures", description=__doc__)
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
        write(portraits(who, options.count, options.identity_seed, SIZES), who, options.out)
    except OSError as error:
        parser.error(f"--out {options.out}: cannot be written ({error.strerror}); choose another")
    print(options.out / "truth.json", file=sys.stdout)


if __name__ == "__main__":
    main()
