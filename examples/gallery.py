"""Make the contact sheets of docs/images: python examples/gallery.py {samples,concepts,pairs,counts,all}."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from costars import RegionError, Scene, open_studio
from costars.images.contact_sheet import make_grid, overlay_masks
from costars.retry import retry_seeds
from costars.studio import Studio
from costars.types import Picture
from costars_world.training.samples import PROMPTS, sample_images, tile_images

PAIRS = (
    ("{ana} in front of {bo} in a park", ("ana", "bo")),
    ("{bo} in front of {cleo} on a beach", ("bo", "cleo")),
    ("{ana} to the left of {cleo} in the snow", ("ana", "cleo")),
    ("{dan} to the left of {bo} on a street", ("dan", "bo")),
    ("{rex} in front of {eve} in a room", ("rex", "eve")),
    ("{bolt} behind {mochi} in a desert", ("bolt", "mochi")),
    ("{eve} next to {ana} on a beach", ("eve", "ana")),
    ("{dan} in front of {bolt} on a street", ("dan", "bolt")),
)
COUNTS = (
    ("{ana} on a street", ("ana",)),
    ("{ana} in front of {dan} on a street", ("ana", "dan")),
    ("{ana}, {dan} and {rex} on a street", ("ana", "dan", "rex")),
    ("{ana}, {dan}, {rex} and {bolt} on a street", ("ana", "dan", "rex", "bolt")),
    ("{ana}, {dan}, {rex}, {mochi} and {bolt} on a street", ("ana", "dan", "rex", "mochi", "bolt")),
)
RETRIES = 40
STEPS = 50


def make_scene(prompt: str, names: tuple[str, ...], method: str, seed: int) -> Scene:
    """Make a scene with concepts of the pack."""
    cast = {name: {"concept": f"builtin/{name}"} for name in names}
    return Scene.model_validate({"prompt": prompt, "cast": cast, "method": method, "seed": seed, "steps": STEPS})


def render_with_retries(studio: Studio, scene: Scene) -> Picture | None:
    """Render a scene, with further seeds while the layout does not show the cast; None if all seeds fail."""
    try:
        pictures = [e for e in retry_seeds(studio.render_steps, scene, RETRIES) if isinstance(e, Picture)]
    except RegionError as error:
        print(f"{scene.prompt}: {error}")
        return None
    return pictures[0]


def draw_samples(studio: Studio, out: Path) -> None:
    """Draw images of the base model for 32 prompts."""
    tile_images(sample_images(studio.model("builtin"), PROMPTS, steps=STEPS)).save(out / "samples.png")
    (out / "samples.txt").write_text("\n".join(PROMPTS) + "\n")


def draw_concepts(studio: Studio, out: Path) -> None:
    """Draw each concept of the pack: two reference pictures, then three generated images."""
    rows, names = [], []
    for path in sorted((studio.settings.builtin / "concepts").glob("*.safetensors")):
        references = [Image.open(path.with_suffix("") / f"{i:02d}.png") for i in range(2)]
        generated = []
        for i, place in enumerate(("in a park", "on a street", "in the snow")):
            scene = make_scene(f"{{{path.stem}}} {place}", (path.stem,), "multi_lora", 10 + i)
            generated.append(studio.render(scene).image)
        rows.append([*references, *generated])
        names.append(path.stem)
    make_grid(rows, ("reference", "reference", "drawn", "drawn", "drawn"), names).save(out / "concepts.png")


def draw_pairs(studio: Studio, out: Path) -> None:
    """Draw eight scenes of two: layout, masks, two_stage, and multi_lora."""
    rows, captions = [], []
    for prompt, names in PAIRS:
        picture = render_with_retries(studio, make_scene(prompt, names, "two_stage", 1))
        if picture is None or picture.plan is None:
            continue
        layout = picture.plan.layout.image
        baseline = studio.render(make_scene(prompt, names, "multi_lora", picture.scene.seed))
        rows.append([layout, overlay_masks(layout, picture.plan.regions), picture.image, baseline.image])
        captions.append(f"{prompt}  (seed {picture.scene.seed})")
    make_grid(rows, ("layout", "who is where", "two_stage", "multi_lora (baseline)"), captions).save(out / "pairs.png")


def draw_counts(studio: Studio, out: Path) -> None:
    """Draw one to five concepts in one picture, and write their UNet rows and seconds."""
    rows, captions, table = [], [], []
    for prompt, names in COUNTS:
        picture = render_with_retries(studio, make_scene(prompt, names, "two_stage", 1))
        if picture is None or picture.plan is None:
            continue
        layout = picture.plan.layout.image
        rows.append([layout, overlay_masks(layout, picture.plan.regions), picture.image])
        captions.append(f"{prompt}  (seed {picture.scene.seed})")
        seconds = {k: round(v, 2) for k, v in picture.seconds.items()}
        table.append({"concepts": len(names), "rows": dict(picture.rows), "seconds": seconds})
    make_grid(rows, ("layout", "who is where", "two_stage"), captions).save(out / "counts.png")
    (out / "counts.json").write_text(json.dumps(table, indent=2) + "\n")


SHEETS: dict[str, Callable[[Studio, Path], None]] = {
    "samples": draw_samples,
    "concepts": draw_concepts,
    "pairs": draw_pairs,
    "counts": draw_counts,
}


def main() -> None:
    """Make one sheet or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sheet", choices=(*SHEETS, "all"), help="which sheet to make")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="output folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    studio = open_studio()
    for name in SHEETS if options.sheet == "all" else (options.sheet,):
        SHEETS[name](studio, options.out)


if __name__ == "__main__":
    main()
