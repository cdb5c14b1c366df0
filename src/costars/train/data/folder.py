"""List the training images of a folder with their captions and mask files, from sidecar files or a .jsonl."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from costars.errors import ReadError, TrainError
from costars.files.plain_data import parse_json
from costars.files.regular_file import is_there, read_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MASK_SUFFIX = ".mask.png"
MAX_CAPTION = 10_000  # characters; the text encoders read 600 tokens
MAX_LIST_BYTES = 100_000_000  # of a .jsonl file: some hundred thousand images
EXPECTED_FILES = f"expected {', '.join(SUFFIXES)}"


@dataclass(frozen=True)
class ListedImage:
    """An image file that was not read yet: its path in the folder, its caption or None, its mask file or None."""

    name: str
    caption: str | None
    mask: Path | None


def list_images(folder: Path) -> list[ListedImage]:
    """The folder's images sorted by name, or the entries of its .jsonl; raises TrainError as `read_image_folder`."""
    if not folder.is_dir():
        raise TrainError(f"images {str(folder)!r}: folder not found; give a folder of training images")
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise TrainError(f"images {str(folder)!r}: cannot list the folder ({format_error(error)})") from error
    metadata = [name for name in names if name.lower().endswith(".jsonl")]
    if len(metadata) > 1:
        raise TrainError(f"images {str(folder)!r}: found {len(metadata)} .jsonl files, {', '.join(metadata)}; keep one")
    if metadata:
        return list(_read_metadata(folder, folder / metadata[0]))
    return [_read_sidecars(folder, name) for name in names if name.lower().endswith(SUFFIXES) and not _is_mask(name)]


def format_error(error: Exception) -> str:
    """A library's error as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _is_mask(name: str) -> bool:
    return name.lower().endswith(MASK_SUFFIX)


def _read_sidecars(folder: Path, name: str) -> ListedImage:
    caption, mask = ((folder / name).with_suffix(suffix) for suffix in (".txt", MASK_SUFFIX))
    text = _first_line(_read_text(caption)) if caption.exists() else None
    if len(text or "") > MAX_CAPTION:
        raise TrainError(f"{caption.name!r}: a caption of {len(text or '')} characters; write at most {MAX_CAPTION}")
    return ListedImage(name, text, mask if mask.exists() else None)


def _read_metadata(folder: Path, path: Path) -> Iterator[ListedImage]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):  # splitlines would also split at U+2028 in strings
        if line.strip():
            yield _parse_line(folder, line, f"{path.name} line {number}")


def _parse_line(folder: Path, line: str, where: str) -> ListedImage:
    try:
        values = parse_json(line, where)
    except ReadError as error:
        raise TrainError(f"{where}: {error.reason}; write one object per line") from error
    if not isinstance(values, dict):
        raise TrainError(f'{where}: {line.strip()[:60]!r} is not an object; write {{"file_name": "NAME.png"}}')
    name = _path_in_folder(folder, _text_value(values, where, "file_name", "file"), where)
    if name is None:
        raise TrainError(f'{where}: no file_name; write "file_name": "NAME.png"')
    if _is_mask(name):
        raise TrainError(f'{where}: file_name {name!r} is a mask file; name the image, and its mask as "mask"')
    sidecars, mask = _read_sidecars(folder, name), _path_in_folder(folder, _text_value(values, where, "mask"), where)
    caption = _first_line(_text_value(values, where, "text", "caption") or "")
    return ListedImage(name, caption or sidecars.caption, folder / mask if mask else sidecars.mask)


def _text_value(values: Mapping[str, object], where: str, *keys: str) -> str | None:
    """The value of the first key that is set; None if none is."""
    key = next((key for key in keys if values.get(key) not in (None, "")), None)
    if key is None:
        return None
    value = values[key]
    if not isinstance(value, str):
        raise TrainError(f"{where}: {key} is {value!r}; must be a string")
    return value


def _path_in_folder(folder: Path, name: str | None, where: str) -> str | None:
    if name is None:
        return None
    path = os.path.normpath(name)
    if os.path.isabs(path) or path.split(os.sep)[0] == "..":
        raise TrainError(f"{where}: {name!r} is outside the folder; use a path inside it")
    if not is_there(folder / path) or not (folder / path).is_file():
        raise TrainError(f"{where}: file {name!r} not found in the folder; correct the name or remove the line")
    return path


def _read_text(path: Path) -> str:
    try:
        return read_text(path, MAX_LIST_BYTES)
    except ReadError as error:
        raise TrainError(f"{path.name!r}: {error.reason}; {error.remedy}") from error


def _first_line(text: str) -> str | None:
    return next((line.strip() for line in text.splitlines() if line.strip()), None)
