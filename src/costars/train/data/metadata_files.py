"""Metadata files that list training images: .jsonl of Hugging Face datasets, .json of kohya's sd-scripts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from costars.errors import ReadError, TrainError
from costars.files.plain_data import parse_foreign_json, parse_json
from costars.files.regular_file import is_there
from costars.train.data.text_files import first_line, read_text

# What kohya's finetune scripts write one after the other; the last one counts.
KOHYA_METADATA = ("meta_lat.json", "meta_clean.json", "meta_cap.json")
CAPTION_KEYS = ("text", "caption")
OTHER_CAPTION_KEYS = ("prompt", "description", "captions", "tags", "additional_feature")  # of other data sets


@dataclass(frozen=True)
class CaptionEntry:
    """An image with the caption and mask that a metadata file states, all paths in the folder; None: not stated."""

    name: str
    caption: str | None = None
    mask: str | None = None


def read_jsonl(folder: Path, name: str, is_mask: Callable[[str], bool]) -> Iterator[CaptionEntry]:
    """The images that a .jsonl file lists, one object per line. Raises TrainError that names the line."""
    for number, line in enumerate(read_text(folder / name).split("\n"), 1):  # splitlines also splits at U+2028
        if line.strip():
            yield _parse_line(folder, line, f"{name} line {number}", is_mask)


def read_kohya(folder: Path, name: str, images: Sequence[str]) -> Iterator[CaptionEntry]:
    """The images that a file of kohya lists: {path or stem: {"caption": text, "tags": text}}.

    Tags follow the caption after a comma, as in kohya's fine_tune.py. Raises TrainError for an entry without an image.
    """
    try:
        entries = parse_foreign_json(read_text(folder / name), name)
    except ReadError as error:
        raise TrainError(f"{name}: {error.reason}; write it again, or remove it") from error
    if not isinstance(entries, dict):
        raise TrainError(f'{name}: contains {type(entries).__name__}; want {{"IMAGE": {{"caption": "..."}}}}')
    by_stem = {os.path.splitext(image)[0]: image for image in images}
    for key, values in entries.items():
        base = os.path.basename(str(key).replace("\\", "/"))
        image = base if base in images else by_stem.get(base, by_stem.get(os.path.splitext(base)[0]))
        if image is None:
            raise TrainError(f"{name}: {key!r}: no such image in the folder; remove the entry, or add the image")
        if not isinstance(values, dict):
            raise TrainError(f'{name}: {key!r}: {str(values)[:40]!r} is no object; want {{"caption": "..."}}')
        texts = [_text_value(values, f"{name}: {key!r}", field) for field in ("caption", "tags")]
        yield CaptionEntry(image, first_line(", ".join(text for text in texts if text)))


def _parse_line(folder: Path, line: str, where: str, is_mask: Callable[[str], bool]) -> CaptionEntry:
    try:
        values = parse_json(line, where)
    except ReadError as error:
        raise TrainError(f"{where}: {error.reason}; write one object per line") from error
    if not isinstance(values, dict):
        raise TrainError(f'{where}: {line.strip()[:60]!r} is not an object; write {{"file_name": "NAME.png"}}')
    name = _path_in_folder(folder, _text_value(values, where, "file_name", "file"), where)
    if name is None:
        raise TrainError(f'{where}: no file_name; write "file_name": "NAME.png"')
    if is_mask(name):
        raise TrainError(f'{where}: file_name {name!r} is a mask file; name the image, and its mask as "mask"')
    mask = _path_in_folder(folder, _text_value(values, where, "mask"), where)
    caption = first_line(_text_value(values, where, *CAPTION_KEYS) or "")
    other = next((key for key in OTHER_CAPTION_KEYS if values.get(key)), None)
    if caption is None and other is not None:
        raise TrainError(f"{where}: {other!r} is not read as a caption; rename it to {' or '.join(CAPTION_KEYS)}")
    return CaptionEntry(name, caption, mask)


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
    if "\0" in path or not is_there(folder / path) or not (folder / path).is_file():
        raise TrainError(f"{where}: file {name!r} not found in the folder; correct the name or remove the line")
    return path
