"""Pictures to learn from: a folder of them, with captions and masks beside them or named in a .jsonl file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from costars.errors import TrainError
from costars.images.masks import to_grey_levels
from costars.train.data.folder import WANTED, list_images, one_line
from costars.types import MaskArray

FORMATS = ("PNG", "JPEG", "WEBP")  # whatever the file's name says


@dataclass(frozen=True)
class Example:
    """A picture to learn from, RGB and upright; name is its file's.

    caption is None where nobody wrote one, mask (of the picture's size) where nobody drew one.
    """

    image: Image.Image
    caption: str | None = None
    mask: MaskArray | None = None
    name: str = ""


@dataclass(frozen=True)
class ImageFolder:
    """The examples of a folder; skipped has a line for each picture that could not be read, with the reason."""

    examples: tuple[Example, ...]
    skipped: tuple[str, ...]


def read_image_folder(folder: Path) -> ImageFolder:
    """Every picture of the folder by name, or those that its .jsonl names in its order.

    Beside NAME.png lie its caption (first line of NAME.txt) and its mask (NAME.mask.png, white where the
    concept is). Each line of a .jsonl is an object with file_name or file, and if wanted text or caption, and
    mask; what it does not say is read beside the picture. Raises TrainError for a folder without a usable
    picture, and for a caption, mask or line that cannot be read.
    """
    examples, skipped = list[Example](), list[str]()
    for found in list_images(folder):
        try:
            image = _picture(folder / found.name)
        except Exception as error:  # a damaged file makes PIL raise nearly anything
            skipped.append(f"{found.name!r}: {_reason(error)}; skipped")
            continue
        mask = None if found.mask is None else read_mask(found.mask, image, found.name)
        examples.append(Example(image, found.caption, mask, found.name))
    if not examples:
        why = f"{len(skipped)} cannot be read, first {skipped[0]}" if skipped else WANTED
        raise TrainError(f"pictures {str(folder)!r}: no usable picture there ({why}); put at least one there")
    return ImageFolder(tuple(examples), tuple(skipped))


def _upright(path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError("no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of odd EXIF and the like
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as opened:
            return ImageOps.exif_transpose(opened)


def _picture(path: Path) -> Image.Image:
    image = _upright(path)
    if image.mode.startswith("I"):  # 16 bit, which PIL would cut off at 255
        image = Image.fromarray((to_grey_levels(image) * 255).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    drawn = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")


def read_mask(path: Path, image: Image.Image, name: str) -> MaskArray:
    """(h, w) in [0, 1] of the size of the picture called name; raises TrainError for anything else."""
    want = f"want greyscale of {image.width} x {image.height} px, white where the concept is; draw it again"
    try:
        drawn = _upright(path)
        mask = to_grey_levels(drawn)
    except Exception as error:  # as in read_folder
        raise TrainError(f"mask {path.name!r} of {name!r}: {_reason(error)}; {want}") from error
    if drawn.size != image.size:
        raise TrainError(f"mask {path.name!r} of {name!r}: is {drawn.width} x {drawn.height} px; {want}")
    if not mask.any():
        raise TrainError(f"mask {path.name!r} of {name!r}: all black, there is nothing to learn; {want}")
    return mask


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a PNG, JPEG or WebP picture"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels, scale it down"
    return one_line(error)
