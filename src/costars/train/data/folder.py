"""Which pictures a folder holds to learn from, and what is said and drawn of each: files beside them, or a .jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from costars.errors import TrainError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MASK_SUFFIX = ".mask.png"
WANTED = f"want {', '.join(SUFFIXES)}"


@dataclass(frozen=True)
class ListedImage:
    """A picture by its path in the folder, unread; caption is None where there is none, mask its file."""

    name: str
    caption: str | None
    mask: Path | None


def list_images(folder: Path) -> list[ListedImage]:
    """The folder's pictures by name, or what the lines of its .jsonl name; raises TrainError as `read_folder`."""
    if not folder.is_dir():
        raise TrainError(f"pictures {str(folder)!r}: no such folder; give one with pictures, {WANTED}")
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise TrainError(f"pictures {str(folder)!r}: {one_line(error)}; let yourself read the folder") from error
    lists = [name for name in names if name.lower().endswith(".jsonl")]
    if len(lists) > 1:
        raise TrainError(f"pictures {str(folder)!r}: {len(lists)} lists, {', '.join(lists)}; keep one .jsonl at most")
    if lists:
        return list(_lines(folder, folder / lists[0]))
    return [_beside(folder, name) for name in names if name.lower().endswith(SUFFIXES) and not _is_mask(name)]


def one_line(error: Exception) -> str:
    """What a library says of its failure, short enough to stand in a message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _is_mask(name: str) -> bool:
    return name.lower().endswith(MASK_SUFFIX)


def _beside(folder: Path, name: str) -> ListedImage:
    caption, mask = ((folder / name).with_suffix(suffix) for suffix in (".txt", MASK_SUFFIX))
    return ListedImage(name, _first_line(_text(caption)) if caption.exists() else None, mask if mask.exists() else None)


def _lines(folder: Path, path: Path) -> Iterator[ListedImage]:
    for number, line in enumerate(_text(path).split("\n"), 1):  # not splitlines: JSON may hold its other line ends
        if line.strip():
            yield _line(folder, line, f"{path.name} line {number}")


def _line(folder: Path, line: str, where: str) -> ListedImage:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TrainError(f"{where}: not JSON ({one_line(error)}); write one object on a line") from error
    if not isinstance(values, dict):
        raise TrainError(f'{where}: {line.strip()[:60]!r} is not an object; write {{"file_name": "NAME.png"}}')
    name = _inside(folder, _word(values, where, "file_name", "file"), where)
    if name is None:
        raise TrainError(f'{where}: names no picture; write "file_name": "NAME.png"')
    if _is_mask(name):
        raise TrainError(f'{where}: {name!r} is a mask by its name; name the picture, and the mask as "mask"')
    beside, mask = _beside(folder, name), _inside(folder, _word(values, where, "mask"), where)
    caption = _first_line(_word(values, where, "text", "caption") or "")
    return ListedImage(name, caption or beside.caption, folder / mask if mask else beside.mask)


def _word(values: Mapping[str, object], where: str, *keys: str) -> str | None:
    """The first of the keys that says something."""
    key = next((key for key in keys if values.get(key) not in (None, "")), None)
    if key is None:
        return None
    found = values[key]
    if not isinstance(found, str):
        raise TrainError(f"{where}: {key} is {found!r}; want text in quotes")
    return found


def _inside(folder: Path, name: str | None, where: str) -> str | None:
    if name is None:
        return None
    plain = os.path.normpath(name)
    if os.path.isabs(plain) or plain.split(os.sep)[0] == "..":
        raise TrainError(f"{where}: {name!r} leads out of the folder; name a file in it")
    if "\0" in plain or not (folder / plain).is_file():
        raise TrainError(f"{where}: no file {name!r} in the folder; correct the name or take the line out")
    return plain


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainError(f"{path.name!r}: cannot be read ({one_line(error)}); save it as text in UTF-8") from error


def _first_line(text: str) -> str | None:
    return next((line.strip() for line in text.splitlines() if line.strip()), None)
