"""Mask files that a scene gives as a member's `where`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from costars.errors import ReadError, SceneError, nearest
from costars.files.pictures import load_picture
from costars.files.regular_file import is_there
from costars.images.masks import read_levels, same_aspect_ratio, to_grey_levels
from costars.scene.scene import SIDES, CastMember
from costars.types import MaskArray


def has_mask_file(member: CastMember) -> bool:
    """Whether the member's `where` is a mask file."""
    return isinstance(member.where, str) and member.where not in SIDES


def load_mask(member: CastMember, size_px: tuple[int, int]) -> MaskArray:
    """Load a member's mask file as (h, w) of 0 and 1, resized to (width, height); raises SceneError as check_mask."""
    levels = to_grey_levels(load_picture(check_mask(member, size_px)))
    mask = Image.fromarray(levels).resize(size_px, Image.Resampling.BILINEAR)
    return (np.asarray(mask) >= 0.5).astype(np.float32)


def check_mask(member: CastMember, size_px: tuple[int, int] | None) -> Path:
    """Return the path of a member's mask file.

    Raises SceneError if it is missing, not a grey image, or not of the picture's aspect ratio; None is any ratio.
    """
    path = Path(str(member.where))
    try:
        image = load_picture(path)
        to_grey_levels(image)
    except ReadError as error:
        problem = error.reason if is_there(path) else "not found"
        hint = "" if path.suffix else f"; {nearest(path.name, SIDES)}"
        raise SceneError(
            f"where: {path.name!r} is not left, right, a point, a box or a mask file ({path}: {problem}){hint}"
        ) from None
    except ValueError as error:
        raise SceneError(f"where: {member.where!r} {error}; use white on black, or one colour on transparent") from None
    if size_px is not None and not same_aspect_ratio(image.size, size_px):
        width, height = image.size
        raise SceneError(
            f"where: {member.where!r} is {width} x {height} px, the picture {size_px[0]} x {size_px[1]} px; "
            "use a mask with the picture's aspect ratio"
        )
    return path


def describe_masks(cast: Mapping[str, CastMember]) -> tuple[str, ...]:
    """A note for each mask file that is transparent; the files are checked before."""
    notes = []
    for name, member in cast.items():
        if has_mask_file(member):
            _, transparency = read_levels(load_picture(Path(str(member.where))))
            if transparency:
                notes.append(f"cast.{name}.where: {member.where} {transparency}")
    return tuple(notes)


def check_mask_files(cast: Mapping[str, CastMember], size_px: tuple[int, int]) -> None:
    """Check the mask files of all members for a picture of (width, height); raises SceneError."""
    for member in cast.values():
        if has_mask_file(member):
            check_mask(member, size_px)
