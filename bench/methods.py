"""Seconds of a whole picture: two_stage against multi_lora, 1 to 3 concepts.

Prints rows, seconds and the ratio to multi_lora of the same cast: python bench/methods.py [--steps 50]
"""

from __future__ import annotations

import argparse
import time

from costars import RegionError, Scene, open_studio
from costars.retry import last, retried
from costars.types import Picture

CASTS = (("ana",), ("ana", "bo"), ("ana", "bo", "rex"))


def main() -> None:
    """Render each cast with both methods, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    studio = open_studio()
    studio.model("builtin")
    for cast in CASTS:
        slots = " and ".join(f"{{{name}}}" for name in cast)
        took = {}
        for method in ("multi_lora", "two_stage"):
            scene = Scene.model_validate(
                {
                    "prompt": f"{slots} in a park",
                    "cast": {name: {"concept": f"builtin/{name}"} for name in cast},
                    "method": method,
                    "steps": options.steps,
                    "seed": 1,
                }
            )
            try:
                picture = last(retried(studio.render_steps, scene, 8), Picture)
            except RegionError as error:
                print(f"k={len(cast)}  {error}")
                break
            began = time.perf_counter()
            picture = studio.render(picture.scene)
            took[method] = time.perf_counter() - began
            rows = sum(picture.rows.values())
            ratio = took[method] / took["multi_lora"]
            print(f"k={len(cast)}  {method:<11} {rows:4d} rows  {took[method]:6.2f} s   ratio {ratio:5.2f}")


if __name__ == "__main__":
    main()
