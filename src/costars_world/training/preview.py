"""Fits the map from latents to colours that previews of the built-in model use.

`python -m costars_world.training.preview` prints the numbers of src/costars/model/preview.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from costars.studio import open_studio
from costars_world.render.world import sample_picture
from costars_world.training.latents import encode_images

FIRST_SEED = 3_000_000  # far from the seeds of training and test pictures
NUM_FITTED, NUM_HELD_OUT = 48, 16

Rows = NDArray[np.floating[Any]]


def encode_cells(vae: AutoencoderKL, seeds: Iterable[int]) -> tuple[Rows, Rows]:
    """Scaled latents with a column of ones (n, c + 1) and mean colours in [0, 1] (n, 3) of the cells of renders."""
    images = np.stack([np.asarray(sample_picture(seed).image) for seed in seeds])
    mean, _ = encode_images(vae, torch.from_numpy(images))
    latents = (mean * vae.config["scaling_factor"]).permute(0, 2, 3, 1)
    n, h, w, c = latents.shape
    cell_px = images.shape[1] // h
    colours: Rows = images.reshape(n, h, cell_px, w, cell_px, 3).mean((2, 4)) / 255
    rows = latents.reshape(-1, c).double().numpy()
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1), colours.reshape(-1, 3)


def fit_colours(latents: Rows, colours: Rows) -> Rows:
    """The least-squares map (c + 1, 3)."""
    fitted: Rows = np.linalg.lstsq(latents, colours, rcond=None)[0].astype(np.float64)
    return fitted


def explained_variance(table: Rows, latents: Rows, colours: Rows) -> float:
    """The share of the colours' variance that a map explains."""
    error = colours - latents @ table
    return float(1 - (error**2).sum() / ((colours - colours.mean(axis=0)) ** 2).sum())


def main() -> None:
    """Fit on some renders, and print the map and how much of others it explains."""
    vae = open_studio("cpu").model("builtin").vae
    last = FIRST_SEED + NUM_FITTED
    table = fit_colours(*encode_cells(vae, range(FIRST_SEED, last)))
    print(np.round(table, 3).tolist())
    print(f"explained: {explained_variance(table, *encode_cells(vae, range(last, last + NUM_HELD_OUT))):.3f}")


if __name__ == "__main__":
    main()
