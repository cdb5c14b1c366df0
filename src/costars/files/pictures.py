"""Pictures that come in as files: decoded completely, in formats that no other program is run for, of limited size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from costars.errors import ReadError, to_one_line
from costars.files.regular_file import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # told apart by content, not by suffix
MAX_PIXELS = 89_478_485  # Pillow's own limit, at which it warns


def load_picture(path: Path, formats: Sequence[str] = FORMATS) -> Image.Image:
    """The decoded picture, with its metadata in `info`; the first one of an animation.

    Raises ReadError if the path is not a regular file, not a picture in one of the formats, or damaged, or if it has
    more than MAX_PIXELS pixels.
    """
    with open_regular(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about malformed EXIF and similar
        try:
            image = Image.open(file, formats=tuple(formats))
            if image.width * image.height <= MAX_PIXELS:
                image.load()
        except UnidentifiedImageError:
            raise ReadError(path, f"not a picture in {', '.join(formats)} format", "save it as PNG") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise _too_large(path) from None
        except Exception as error:  # Pillow raises many types for damaged files
            reason = to_one_line(error)
            raise ReadError(path, f"a damaged picture ({reason})", "save it again") from None
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path)
    return image


def _too_large(path: Path) -> ReadError:
    return ReadError(path, f"more than {MAX_PIXELS} pixels", "scale it down")
