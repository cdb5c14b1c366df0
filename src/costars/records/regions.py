"""Regions in files: a mask and a few facts for each member."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from costars.errors import ReadError, SceneError
from costars.files.pictures import load_picture
from costars.images.masks import read_levels, to_grey_levels
from costars.types import Region


def region_facts(name: str, region: Region) -> dict[str, Any]:
    """The facts of a region for a record; box and area are fractions of the picture."""
    return {
        "name": name,
        "class_name": region.class_name,
        "box": [round(v, 4) for v in region.box],
        "score": round(region.score, 4),
        "depth": region.depth,
        "area": round(region.area, 4),
    }


def write_masks(regions: Mapping[str, Region], folder: Path) -> None:
    """Write masks/NAME.png for each member, white inside its region."""
    (folder / "masks").mkdir(exist_ok=True)
    for name, region in regions.items():
        Image.fromarray(_levels(region)).save(folder / "masks" / f"{name}.png")


def read_region(folder: Path, facts: Mapping[str, Any], size: tuple[int, int]) -> Region:
    """Read a region and its mask; raises SceneError for a mask of another size than (width, height), or not grey."""
    path = folder / "masks" / f"{Path(facts['name']).name}.png"
    want = f"save it as a grey .png of {size[0]} x {size[1]} px, white where {facts['name']} is"
    try:
        image = load_picture(path)
        if image.size != size:
            raise SceneError(f"{path}: is {image.width} x {image.height} px; {want}")
        mask = to_grey_levels(image)
    except ReadError as error:
        raise SceneError(f"{path}: {error.reason}; {want}") from None
    except ValueError as error:
        raise SceneError(f"{path}: {error}; {want}") from None
    return Region(str(facts["class_name"]), mask, float(facts["score"]), int(facts["depth"]))


def describe_masks(folder: Path, names: Iterable[str]) -> tuple[str, ...]:
    """A note for each mask of a plan that is transparent; the masks have been read before."""
    notes = []
    for name in names:
        path = folder / "masks" / f"{Path(name).name}.png"
        _, transparency = read_levels(load_picture(path))
        if transparency:
            notes.append(f"{path} {transparency}")
    return tuple(notes)


def hash_masks(regions: Mapping[str, Region]) -> str:
    """sha256 of the regions' names, depths and masks (8 bit)."""
    digest = hashlib.sha256()
    for name, region in sorted(regions.items()):
        digest.update(f"{name} {region.depth} ".encode() + _levels(region).tobytes())
    return digest.hexdigest()


def _levels(region: Region) -> NDArray[np.uint8]:
    return (region.mask * 255).round().astype(np.uint8)


def round_seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Round to milliseconds."""
    return {key: round(value, 3) for key, value in seconds.items()}
