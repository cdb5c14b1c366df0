"""Folders that are written whole or not at all, and never in the place of what others wrote."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from costars.errors import SceneError

# What a run of each kind leaves, its own record last.
KINDS = {
    "plan": ("layout.png", "layout.safetensors", "plan.json"),
    "picture": ("picture.png", "layout.png", "sheet.png", "result.json"),
}
# What a run may leave in its folder, beside masks/NAME.png; a record tells of the masks.
RECORDS = ("result.json", "plan.json", "missing.json")
OURS = ("picture.png", "layout.png", "sheet.png", "layout.safetensors", *RECORDS)


def check_folder(out: Path, kind: str = "") -> None:
    """Raises SceneError if this cannot be a folder to write into, or holds what this kind would replace.

    kind is "plan" or "picture": one never takes the place of the other, nor of what we did not write.
    """
    check_place(out, "--out")
    for other in KINDS.keys() - {kind} if kind else ():
        if (out / KINDS[other][-1]).is_file():
            raise SceneError(
                f"--out {out}: holds a {other} of an earlier run, which would be lost; choose another folder"
            )
    _check_ours(out, [Path(name) for name in KINDS.get(kind, ())], written_before(out))


def check_place(folder: Path, option: str) -> None:
    """Raises SceneError if this cannot be a folder to write into; option is what named it."""
    place = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise SceneError(f"{option} {folder}: {place} is not a folder that can be written; choose another")


def _check_ours(out: Path, names: Iterable[Path], old: Sequence[Path]) -> None:
    """Raises SceneError for a name that is there and not among what we wrote."""
    for name in names:
        if (out / name).exists() and out / name not in old:
            raise SceneError(f"--out {out}: holds {name}, which costars did not write; choose another folder")


def written_before(out: Path) -> list[Path]:
    """The files of a folder that an earlier run wrote, as its own records tell; none of anybody else's."""
    for record in RECORDS:
        try:
            regions = json.loads((out / record).read_text())["regions"]
            masks = [out / "masks" / f"{Path(region['name']).name}.png" for region in regions]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return [path for path in (*(out / name for name in OURS), *masks) if path.is_file()]
    return []


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder inside out to write into; its files replace what we wrote there before if the block succeeds.

    Raises SceneError, and writes nothing, where a file would replace one that we did not write.
    """
    check_folder(out)
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=".part", dir=out))
    try:
        yield partial
        old, new = written_before(out), sorted(p.relative_to(partial) for p in partial.rglob("*") if p.is_file())
        _check_ours(out, new, old)
        for name in sorted(new, key=lambda name: name.name in RECORDS):  # a stop leaves the record of before
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / name, out / name)
        for path in {*old} - {out / name for name in new}:
            path.unlink()
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if (out / "masks").is_dir() and not any((out / "masks").iterdir()):
            (out / "masks").rmdir()
        if made and not any(out.iterdir()):
            out.rmdir()
