"""Read a folder of training images with their captions and masks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from costars.errors import ReadError, TrainError
from costars.files.pictures import load_picture
from costars.images.masks import to_grey_levels
from costars.train.data.folder import EXPECTED_FILES, format_error, list_images
from costars.types import MaskArray

FORMATS = ("PNG", "JPEG", "WEBP")  # checked by content, not by suffix


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
    """The examples of a folder, and one line per image that could not be read, with the reason."""

    examples: tuple[Example, ...]
    skipped: tuple[str, ...]


def read_image_folder(folder: Path) -> ImageFolder:
    """Read all images of a folder sorted by name, or the images that its .jsonl lists, in that order.

    The caption of NAME.png is the first line of NAME.txt, its mask is NAME.mask.png (white on the concept). A line of
    the .jsonl is an object with file_name or file, and optionally text or caption, and mask; values that it lacks
    come from the files beside the image. Unreadable images are skipped. Raises TrainError if no image is usable, or
    if a caption, mask or .jsonl line is invalid.
    """
    examples, skipped = list[Example](), list[str]()
    for listed in list_images(folder):
        try:
            image = _read_image(folder / listed.name)
        except Exception as error:  # PIL raises many types for damaged files
            skipped.append(f"{listed.name!r}: {_reason(error)}; skipped")
            continue
        mask = None if listed.mask is None else read_mask(listed.mask, image, listed.name)
        examples.append(Example(image, listed.caption, mask, listed.name))
    if not examples:
        why = f"{len(skipped)} unreadable, first {skipped[0]}" if skipped else EXPECTED_FILES
        raise TrainError(f"images {str(folder)!r}: no usable image in the folder ({why}); add at least one")
    return ImageFolder(tuple(examples), tuple(skipped))


def read_mask(path: Path, image: Image.Image, name: str) -> MaskArray:
    """Read the mask of the image `name` as (h, w) in [0, 1]; raises TrainError if it does not fit the image."""
    expected = f"expected greyscale, {image.width} x {image.height} px, white on the concept"
    try:
        drawn = _open_upright(path)
        mask = to_grey_levels(drawn)
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
        return ImageOps.exif_transpose(load_picture(path, FORMATS))


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
    return f"{error.reason}, {error.remedy}" if isinstance(error, ReadError) else format_error(error)
