"""Pictures of one identity on disk, as `python -m costars_world.render.portraits` writes them."""

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


def identity_of(references: Path, known: list[Verdict]) -> Identity:
    """Whom the references show: as truth.json says, or as the judge sees most often."""
    truth = references / "truth.json"
    if truth.exists():
        told = json.loads(truth.read_text())
        return Identity(told["class_name"], told["attributes"])
    seen = [verdict.identity for verdict in known]
    return max(seen, key=seen.count)


def reference_figures(folder: Path, segmenter: WorldSegmenter) -> list[tuple[Image.Image, MaskArray]]:
    """Every NN.png of a folder with its NN.mask.png, or with the largest figure that is found.

    Raises SceneError where there is none.
    """
    found = sorted(p for p in folder.glob("*.png") if not p.name.endswith(".mask.png"))
    if not found:
        raise SceneError(f"--references {folder}: holds no .png pictures; give a folder with pictures of one identity")
    masks = [path.with_suffix(".mask.png") for path in found]
    return [figure_in(path, m if m.exists() else None, segmenter) for path, m in zip(found, masks, strict=True)]


def figure_in(path: Path, mask: Path | None, segmenter: WorldSegmenter) -> tuple[Image.Image, MaskArray]:
    """A picture with its mask; without a mask file the largest figure that the segmenter finds."""
    image = _opened(path).convert("RGB")
    if mask is not None:
        shape = _opened(mask).convert("L")
        if shape.size != image.size:
            raise SceneError(f"{mask}: {shape.size} px, but {path} has {image.size}; give a mask of the same size")
        return image, np.asarray(shape, dtype=np.float32) / np.float32(255)
    regions = segmenter.regions(image)
    if not regions:
        raise SceneError(f"{path}: no figure is found in it; give --mask FILE")
    return image, max(regions, key=lambda r: r.area).mask


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError):
        raise SceneError(f"{path}: cannot be read as a picture; check the path") from None
