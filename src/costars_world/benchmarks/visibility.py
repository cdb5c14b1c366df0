"""How often the judgement of who is visible in a picture is right, against labels given by eye.

`python -m costars_world.benchmarks.visibility --out DIR` draws the pictures and measures each member's figure;
docs/images/visibility.json has the labels, and the rates of the rule in `costars.segment.visibility`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from costars.builtin.segmenter import KINDS, load_segmenter
from costars.methods.prompts import with_article
from costars.records.layout_inputs import with_scene
from costars.records.png_metadata import write_picture
from costars.scene.scene import Scene
from costars.segment.overlap import mask_iou
from costars.segment.visibility import CERTAIN_CLASS, PRESENT_IOU
from costars.studio import Studio, open_studio
from costars.types import Picture, RegionError
from costars_world.benchmarks.cases import PAIRS, make_pair_scene, make_scene
from costars_world.render.backgrounds import PLACES
from costars_world.training.concepts import PACK

STEPS = 8  # few steps fail more often, which is what the judgement is for
OMG = {"name": "two_stage", "own_words_share": 0.0, "other_words_share": 0.0}
TRIOS = (("ana", "bo", "rex"), ("dan", "cleo", "mochi"), ("eve", "bo", "bolt"), ("ana", "cleo", "dan"))
QUARTETS = (("ana", "bo", "rex", "mochi"), ("dan", "cleo", "bolt", "rex"), ("eve", "bo", "mochi", "bolt"))
OTHERS = {
    "man": ("rex", "mochi", "bolt"),
    "woman": ("mochi", "rex", "bolt"),
    "dog": ("dan", "ana"),
    "cat": ("bo", "eve"),
    "robot": ("cleo", "dan"),
}
# Seeds of plain pictures, and of pictures in which one member is made to go or to become something else.
SEEDS = {"chosen on": (range(700, 726), range(940, 950)), "reported": (range(800, 872), range(950, 972))}


def make_plain_scene(seed: int) -> Scene:
    """Five pairs, two trios and a quartet in turn; every second eight with the words everywhere, as in OMG."""
    fields: dict[str, Any] = {"steps": STEPS, **({"method": OMG} if (seed // 8) % 2 else {})}
    if seed % 8 < len(PAIRS):
        return make_pair_scene(list(PAIRS)[seed % 8], seed, **fields)
    names: tuple[str, ...] = TRIOS[(seed // 8) % 4] if seed % 8 < 7 else QUARTETS[(seed // 8) % 3]
    names = names[seed % 2 :] + names[: seed % 2]
    slots = [f"{{{name}}}" for name in names]
    place = list(PLACES.values())[(seed // 3) % len(PLACES)].phrase
    return make_scene(f"{', '.join(slots[:-1])} and {slots[-1]} {place}", names, seed, **fields)


def provoke(scene: Scene, seed: int) -> Scene:
    """A planned pair in which one member has another's adapter and prompt, or none."""
    victim = scene.slots()[(seed // 5) % 2]
    place = scene.prompt.partition(scene.slots()[-1] + "} ")[2]
    change: dict[str, Any] = {"prompt": place, "weight": 0.0, "negative_prompt": " ".join(["a", *KINDS])}
    if (seed // 10) % 2:
        others = OTHERS[PACK[victim].class_name]
        other = others[seed % len(others)]
        prompt = f"{with_article(f'{other} {PACK[other].class_name}')} {place}"
        change = {"concept": f"builtin/{other}", "prompt": prompt}
    return scene.model_copy(update={"cast": {**scene.cast, victim: scene.cast[victim].model_copy(update=change)}})


def render_pictures(studio: Studio) -> Iterator[tuple[str, int, Picture]]:
    """(part, seed, picture) of every scene whose layout shows the cast."""
    for part, (plain, provoked) in SEEDS.items():
        for seed in (*plain, *provoked):
            try:
                if seed in plain:
                    yield part, seed, studio.render(make_plain_scene(seed))
                else:
                    scene = make_pair_scene(list(PAIRS)[seed % len(PAIRS)], seed, steps=STEPS, method=OMG)
                    classes = {
                        n: m.model_copy(update={"class_name": PACK[n].class_name}) for n, m in scene.cast.items()
                    }
                    plan = studio.plan(scene.model_copy(update={"cast": classes}))
                    yield part, seed, studio.render(with_scene(plan, provoke(plan.scene, seed)))
            except RegionError as error:
                print(f"seed {seed}: {error}")


def measure(studio: Studio, seed: int, picture: Picture) -> Iterator[dict[str, Any]]:
    """The figure with the largest IoU in each member's place."""
    assert picture.plan is not None, "two_stage has a plan"
    segmenter = load_segmenter(studio.settings.builtin / "segmenter" / "model.safetensors", studio.device)
    figures = segmenter.find_regions(picture.image)
    for name, region in picture.plan.regions.items():
        ious = [mask_iou(figure.mask, region.mask) for figure in figures]
        best = max(range(len(figures)), key=lambda i: ious[i], default=None)
        yield {
            "seed": seed,
            "member": name,
            "class": region.class_name,
            "iou": 0.0 if best is None else round(ious[best], 3),
            "seen": None if best is None else figures[best].class_name,
            "score": 0.0 if best is None else round(figures[best].score, 3),
        }


def is_judged_visible(row: Mapping[str, Any]) -> bool:
    """The rule of `judge_visibility` for a measured figure."""
    if row["iou"] < PRESENT_IOU:
        return False
    return KINDS[row["seen"]] == KINDS[row["class"]] or row["score"] < CERTAIN_CLASS


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Counts of pictures and members, of visible members that are called lost, and of lost ones that are found.

    label is visible, nobody or a class; null is unclear to the eye and does not count.
    """
    clear = [row for row in rows if row["label"] is not None]
    visible = [row for row in clear if row["label"] == "visible"]
    lost = [row for row in clear if row["label"] != "visible"]
    return {
        "pictures": len({row["seed"] for row in rows}),
        "members": len(rows),
        "unclear": len(rows) - len(clear),
        "visible": len(visible),
        "false alarms": sum(not is_judged_visible(row) for row in visible),
        "lost": len(lost),
        "lost and found out": sum(not is_judged_visible(row) for row in lost),
    }


def main() -> None:
    """Draw the pictures and write what was measured; labels are added by eye."""
    parser = argparse.ArgumentParser(prog="python -m costars_world.benchmarks.visibility", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    options = parser.parse_args()
    studio = open_studio()
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in SEEDS}
    for part, seed, picture in render_pictures(studio):
        write_picture(picture, options.out / str(seed), replace=True)
        rows[part] += measure(studio, seed, picture)
    (options.out / "measured.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
