"""Plan a scene with a segmenter of your own: python examples/own_segmenter.py

A segmenter is a function from a layout and class words to regions. This one divides the picture into columns of equal
width, from left to right in the order of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from costars import Layout, Plan, Region, Scene, open_studio, plan_scene, write_picture


def divide_into_columns(layout: Layout, class_names: Sequence[str]) -> list[Region]:
    """One column for each class name."""
    width, height = layout.image.size
    regions = []
    for i, class_name in enumerate(class_names):
        left, right = i * width // len(class_names), (i + 1) * width // len(class_names)
        mask = np.zeros((height, width), dtype=np.float32)
        mask[:, left:right] = 1.0
        regions.append(Region(class_name, mask, score=1.0, depth=i))
    return regions


def main(out: Path = Path("out/own_segmenter"), steps: int = 50) -> Plan:
    """Return the plan; write the picture."""
    scene = Scene(
        prompt="{ana} to the left of {dan} in the snow",
        cast={"ana": "builtin/ana", "dan": "builtin/dan"},
        steps=steps,
    )
    studio = open_studio()
    *_, plan = plan_scene(studio.resolve(scene), divide_into_columns)  # its last event is the plan
    write_picture(studio.render(plan), out)
    return plan


if __name__ == "__main__":
    main()
