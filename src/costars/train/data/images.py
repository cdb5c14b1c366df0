"""Read a folder of training images with their captions and masks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from costars.errors import ReadError, TrainError, to_one_line
from costars.files.pictures import load_picture
from costars.images.masks import read_levels, to_grey_levels
from costars.scene.prompt_syntax import unescape_brackets
from costars.train.data.folder import EXPECTED_FILES, describe_no_image, list_images
from costars.types import MaskArray

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # checked by content, not by suffix


@dataclass(frozen=True)
class Example:
    """A training image (RGB, upright) with its caption and mask, each None if there is none; name is the file name.

    The mask has the image's size.
    """

    image: Image.Image
    caption: str | None = None
    mask: MaskArray | None = None
    name: str = ""


@dataclass(frozen=True)
class ImageFolder:
    """The examples of a folder, and one line for what could not be read or is not read, with the reason.

    concept_masks are {image: {concept: mask file}} for masks that name their concept (EM).
    """

    examples: tuple[Example, ...]
    skipped: tuple[str, ...]
    concept_masks: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)


def read_image_folder(folder: Path, concepts: Sequence[str] = ()) -> ImageFolder:
    """Read all images of a folder sorted by name, or the images that its metadata file lists, in that order.

    The caption of NAME.png is the first line of NAME.txt or NAME.caption, as plain text; its mask (white on the
    concept) is NAME.mask.png, NAME-masklabel.png, NAME_mask.png or masks/NAME.png. A line of a .jsonl is an object with
    file_name or file, and optionally text or caption, and mask; kohya's meta_lat.json has captions and tags by image.
    What they lack comes from the files beside the image. Unreadable images are skipped. Raises TrainError if no image
    is usable, or if a caption, mask or metadata file is invalid.
    """
    examples, skipped, concept_masks = list[Example](), list[str](), dict[str, Mapping[str, Path]]()
    listing = list_images(folder, concepts)
    for listed in listing.images:
        try:
            image = _read_image(folder / listed.name)
        except Exception as error:  # PIL raises many types for damaged files
            skipped.append(f"{listed.name!r}: {_reason(error)}; skipped")
            continue
        mask = read_mask(listed.masks[""], image, listed.name) if "" in listed.masks else None
        caption = None if listed.caption is None else unescape_brackets(listed.caption)
        examples.append(Example(image, caption, mask, listed.name))
        concept_masks[listed.name] = listed.masks
    if not examples:
        why = f"{len(skipped)} unreadable, first {skipped[0]}" if skipped else EXPECTED_FILES
        raise TrainError(describe_no_image(folder, why, listing.unread))
    return ImageFolder(tuple(examples), (*skipped, *listing.unread), concept_masks)


def read_mask(path: Path, image: Image.Image, name: str) -> MaskArray:
    """Read the mask of the image `name` as (h, w) in [0, 1]; raises TrainError if it does not fit the image."""
    expected = f"expected greyscale, {image.width} x {image.height} px, white on the concept"
    try:
        drawn = _open_upright(path)
        mask, transparency = read_levels(drawn)
        if transparency:
            raise ValueError("has an alpha channel")
    except Exception as error:  # as in read_image_folder
        raise TrainError(f"mask {path.name!r} of {name!r}: {_reason(error)}; {expected}") from error
    if drawn.size != image.size:
        raise TrainError(f"mask {path.name!r} of {name!r}: size {drawn.width} x {drawn.height} px; {expected}")
    if not mask.any():
        raise TrainError(f"mask {path.name!r} of {name!r}: all black, so the image trains nothing; {expected}")
    return mask


def _open_upright(path: Path) -> Image.Image:
    """Open an image and apply its EXIF orientation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns about malformed EXIF and similar
        image = load_picture(path, FORMATS)
        if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
            raise ValueError("is an animation; save one frame as PNG")
        return ImageOps.exif_transpose(image)


def _read_image(path: Path) -> Image.Image:
    """Read an image as RGB, on white where it is transparent."""
    image = _open_upright(path)
    if image.mode.startswith("I"):  # 16 bit: PIL's own conversion clips at 255
        image = Image.fromarray((to_grey_levels(image) * 255).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _reason(error: Exception) -> str:
    return f"{error.reason}, {error.remedy}" if isinstance(error, ReadError) else to_one_line(error)
