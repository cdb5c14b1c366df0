"""Compare the time of a whole picture by two_stage and multi_lora, with 1 to 3 concepts.

Prints UNet rows, seconds and the ratio to multi_lora with the same cast: python bench/methods.py [--steps 50]
"""

from __future__ import annotations

import argparse
import time

from costars import RegionError, Scene, open_studio
from costars.retry import last, retry_seeds
from costars.types import Picture

CASTS = (("ana",), ("ana", "bo"), ("ana", "bo", "rex"))


def main() -> None:
    """Render each cast with both methods."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    studio = open_studio()
    studio.model("builtin")
    for cast in CASTS:
        slots = " and ".join(f"{{{name}}}" for name in cast)
        seconds = {}
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
                picture = last(retry_seeds(studio.render_steps, scene, 8), Picture)
            except RegionError as error:
                print(f"k={len(cast)}  {error}")
                break
            started = time.perf_counter()
            picture = studio.render(picture.scene)
            seconds[method] = time.perf_counter() - started
            rows = sum(picture.rows.values())
            ratio = seconds[method] / seconds["multi_lora"]
            print(f"k={len(cast)}  {method:<11} {rows:4d} rows  {seconds[method]:6.2f} s   ratio {ratio:5.2f}")


if __name__ == "__main__":
    main()
