"""Contact sheets of scenes, to look at what is drawn."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from costars_world.world2.render.identity import CLASSES
from costars_world.world2.render.scene import RenderedScene, sample_identity, sample_scene
from costars_world.world2.render.styles import HELD_OUT_STYLES, STYLES


def contact_sheet(images: Sequence[Image.Image], columns: int, zoom: int = 1) -> Image.Image:
    """Pictures of one size side by side, each enlarged by a whole factor."""
    width, height = images[0].width * zoom, images[0].height * zoom
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + 4), rows * (height + 4)), "white")
    for k, image in enumerate(images):
        large = image.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(large, ((k % columns) * (width + 4), (k // columns) * (height + 4)))
    return sheet


def portraits(class_name: str, count: int, seed: int = 0) -> list[RenderedScene]:
    """Scenes of one class alone."""
    rng = random.Random(f"portraits {class_name} {seed}")
    return [sample_scene(seed + k, cast=[sample_identity(rng, class_name)]) for k in range(count)]


def main(arguments: list[str] | None = None) -> None:
    """python -m costars_world.world2.render.sheet --out FILE [--class man] [--size 192x128] ..."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--zoom", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="128x128", help="WIDTHxHEIGHT in px")
    parser.add_argument("--class", dest="class_name", choices=CLASSES)
    parser.add_argument("--relation")
    parser.add_argument("--action")
    parser.add_argument("--style", choices=(*STYLES, *HELD_OUT_STYLES), default="cartoon")
    options = parser.parse_args(arguments)
    width, height = (int(n) for n in options.size.split("x"))
    rng = random.Random(f"sheet {options.seed}")
    images = []
    for k in range(options.count):
        cast = [sample_identity(rng, options.class_name)] if options.class_name else None
        scene = sample_scene(
            options.seed + k,
            size_px=(width, height),
            cast=cast,
            relation=options.relation,
            action=options.action,
            style=options.style,
        )
        images.append(scene.image)
        print(k, scene.caption)
    contact_sheet(images, options.columns, options.zoom).save(options.out)


if __name__ == "__main__":
    main()
