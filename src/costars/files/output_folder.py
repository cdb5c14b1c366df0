"""Output folders: written completely or not at all, and never over files that costars did not write."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from costars.errors import SceneError

# Files of each kind of run; the last one is its record.
KINDS = {
    "plan": ("layout.png", "layout.safetensors", "sheet.png", "plan.json"),
    "picture": ("picture.png", "layout.png", "sheet.png", "result.json"),
}
RECORDS = ("result.json", "plan.json", "missing.json")
# All files that a run may write, except masks/NAME.png; the record lists the masks.
OUTPUT_FILES = ("picture.png", "layout.png", "sheet.png", "layout.safetensors", *RECORDS)


def check_output_folder(out: Path, kind: str = "") -> None:
    """Raise SceneError if `out` cannot be written to, or contains files that this kind of run would replace.

    `kind` is "plan" or "picture". One kind never replaces the other, nor files that costars did not write.
    """
    check_writable(out, "--out")
    for other in KINDS.keys() - {kind} if kind else ():
        if (out / KINDS[other][-1]).is_file():
            raise SceneError(f"--out {out}: contains a {other} of an earlier run; choose another folder")
    _check_overwrites(out, [Path(name) for name in KINDS.get(kind, ())], list_previous_files(out))


def check_writable(folder: Path, option: str) -> None:
    """Raise SceneError if a folder cannot be written to; `option` is the setting that named it."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise SceneError(f"{option} {folder}: {existing} is not a writable folder; choose another")


def _check_overwrites(out: Path, names: Iterable[Path], previous: Sequence[Path]) -> None:
    """Raise SceneError if a file with one of these names exists and costars did not write it."""
    for name in names:
        if (out / name).exists() and out / name not in previous:
            raise SceneError(f"--out {out}: contains {name}, which costars did not write; choose another folder")


def list_previous_files(out: Path) -> list[Path]:
    """Files in a folder that an earlier run wrote, according to its record; [] without a readable record."""
    for record in RECORDS:
        try:
            regions = json.loads((out / record).read_text())["regions"]
            masks = [out / "masks" / f"{Path(region['name']).name}.png" for region in regions]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return [path for path in (*(out / name for name in OUTPUT_FILES), *masks) if path.is_file()]
    return []


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of an earlier run in `out` if the block succeeds.

    Raises SceneError, and writes nothing, if a file would replace one that costars did not write.
    """
    check_output_folder(out)
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=".part", dir=out))
    try:
        yield partial
        _move_files(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if (out / "masks").is_dir() and not any((out / "masks").iterdir()):
            (out / "masks").rmdir()
        if is_new and not any(out.iterdir()):
            out.rmdir()


def _move_files(partial: Path, out: Path) -> None:
    """Move every file of `partial` to `out` and delete the other files of the earlier run."""
    previous = list_previous_files(out)
    new = sorted(path.relative_to(partial) for path in partial.rglob("*") if path.is_file())
    _check_overwrites(out, new, previous)
    for name in sorted(new, key=lambda name: name.name in RECORDS):  # last, so an interruption keeps the old record
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, out / name)
    for path in {*previous} - {out / name for name in new}:
        path.unlink()
