"""Loads figures from files, such as those of `python -m costars_world.render.portraits`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from costars.builtin.segmenter import WorldSegmenter
from costars.errors import SceneError
from costars.types import MaskArray
from costars_world.judge.judge import Verdict
from costars_world.render.identity import Identity


def find_reference_identity(folder: Path, verdicts: list[Verdict]) -> Identity:
    """Return the identity in truth.json or, without that file, the most frequent identity of the verdicts."""
    truth = folder / "truth.json"
    if truth.exists():
        values = json.loads(truth.read_text())
        return Identity(values["class_name"], values["attributes"])
    identities = [verdict.identity for verdict in verdicts]
    return max(identities, key=identities.count)


def load_reference_figures(folder: Path, segmenter: WorldSegmenter) -> list[tuple[Image.Image, MaskArray]]:
    """Load every NN.png of a folder with NN.mask.png or, without a mask file, with the largest figure's mask.

    Raises SceneError if the folder has no .png images.
    """
    paths = sorted(p for p in folder.glob("*.png") if not p.name.endswith(".mask.png"))
    if not paths:
        raise SceneError(f"--references {folder}: no .png images; give a folder with images of one identity")
    masks = [path.with_suffix(".mask.png") for path in paths]
    return [load_figure(path, m if m.exists() else None, segmenter) for path, m in zip(paths, masks, strict=True)]


def load_figure(path: Path, mask: Path | None, segmenter: WorldSegmenter) -> tuple[Image.Image, MaskArray]:
    """Load an image with its mask file or, if mask is None, with the mask of the largest figure found.

    Raises SceneError for an unreadable file, a mask of another size, or an image without a figure.
    """
    image = _open_image(path).convert("RGB")
    if mask is not None:
        grey = _open_image(mask).convert("L")
        if grey.size != image.size:
            raise SceneError(f"{mask}: the mask is {grey.size} px, {path} is {image.size} px; use the same size")
        return image, np.asarray(grey, dtype=np.float32) / np.float32(255)
    regions = segmenter.find_regions(image)
    if not regions:
        raise SceneError(f"{path}: no figure found; give its mask with --mask FILE")
    return image, max(regions, key=lambda r: r.area).mask


def _open_image(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError):
        raise SceneError(f"{path}: not a readable image; check the path") from None
