"""Render with a method of your own, the package examples/averaged: python examples/own_method.py"""

from __future__ import annotations

import argparse
from pathlib import Path

import costars

# Before the first scene is read. The package must be importable; Python finds it in the folder of this script.
costars.METHODS["averaged"] = "averaged"


def main(out: Path = Path("out/own_method"), steps: int = 50) -> None:
    """Render two characters with equal and with unequal shares of the noise."""
    studio = costars.open_studio()
    for first_share in (0.5, 0.7):
        scene = costars.Scene(
            prompt="{ana} next to {dan} in a forest",
            cast={"ana": "builtin/ana", "dan": "builtin/dan"},
            method={"name": "averaged", "first_share": first_share},
            steps=steps,
        )
        costars.write_picture(studio.render(scene), out / str(first_share))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/own_method"))
    parser.add_argument("--steps", type=int, default=50)
    main(**vars(parser.parse_args()))
