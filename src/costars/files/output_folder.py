"""Output folders: written completely or not at all, and never over files that costars did not write.

A run's files are written into a temporary folder in the output folder, which is then renamed to `.costars.new`: this
decides. Then the files of the earlier run that have no successor are deleted, and the new ones are moved to their
places, the record last. A run that is killed before the rename leaves the earlier result; one that is killed after it
leaves `.costars.new`, and the next run or reader finishes what is left to do.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from costars.errors import ReadError, SceneError
from costars.files.atomic import named_errors
from costars.files.plain_data import read_json
from costars.files.regular_file import is_there
from costars.files.temporary import PREFIX, locked_folder, new_folder, temporary_folder

# Files of each kind of run; the last one is its record.
KINDS = {
    "plan": ("layout.png", "layout.safetensors", "sheet.png", "plan.json"),
    "picture": ("picture.png", "layout.png", "sheet.png", "result.json"),
}
RECORDS = ("result.json", "plan.json", "missing.json")
# All files that a run may write, except masks/NAME.png; the record lists the masks.
OUTPUT_FILES = ("picture.png", "layout.png", "sheet.png", "layout.safetensors", *RECORDS)
MASKS = "masks"
COMMITTED, MANIFEST = ".costars.new", ".files.json"  # complete files that are still to be moved, and all their names
MAX_RECORD_BYTES = 10_000_000


def check_output_folder(out: Path, kind: str = "") -> None:
    """Raise SceneError if `out` cannot be written to, or contains files that this kind of run would replace.

    `kind` is "plan" or "picture". One kind never replaces the other, nor files that costars did not write. A link in
    the place of a file or of masks/ is refused: it could lead out of the folder.
    """
    check_writable(out, "--out")
    if is_interrupted(out):
        with lock_results(out):
            pass
    _check_contents(out, kind)


def _check_contents(out: Path, kind: str = "") -> None:
    check_links(out)
    for other in KINDS.keys() - {kind} if kind else ():
        if (out / KINDS[other][-1]).is_file():
            raise SceneError(f"--out {out}: contains a {other} of an earlier run; choose another folder")
    _check_overwrites(out, [Path(name) for name in KINDS.get(kind, ())], list_previous_files(out))


def check_writable(folder: Path, option: str) -> None:
    """Raise SceneError if a folder cannot be written to; `option` is the setting that named it."""
    try:
        existing = next((path for path in (folder, *folder.parents) if is_there(path) or path.is_symlink()), folder)
        is_writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except (OSError, ReadError) as error:
        reason = error.reason if isinstance(error, ReadError) else error.strerror
        raise SceneError(f"{option} {folder}: {reason}; choose another") from None
    if not is_writable or "\0" in str(folder):
        raise SceneError(f"{option} {folder}: {existing} is not a writable folder; choose another")


def check_links(out: Path) -> None:
    """Raise SceneError if a name that a run writes is a link, or not what it should be."""
    for name in (*OUTPUT_FILES, MASKS, COMMITTED, "missing"):
        path = out / name
        is_folder = name in (MASKS, COMMITTED, "missing")
        if path.is_symlink() or (path.exists() and not (path.is_dir() if is_folder else path.is_file())):
            what = "is a link" if path.is_symlink() else f"is not a {'folder' if is_folder else 'file'}"
            raise SceneError(f"--out {out}: its {name} {what}; remove it, or choose another folder")
    for path in (out / MASKS).iterdir() if (out / MASKS).is_dir() else ():
        if path.is_symlink():
            raise SceneError(f"--out {out}: its masks/{path.name} is a link; remove it, or choose another folder")


def _check_overwrites(out: Path, names: Iterable[Path], previous: Sequence[Path]) -> None:
    """Raise SceneError if a file with one of these names exists and costars did not write it."""
    for name in names:
        if (out / name).exists() and out / name not in previous:
            raise SceneError(f"--out {out}: contains {name}, which costars did not write; choose another folder")


def list_previous_files(out: Path) -> list[Path]:
    """Files in a folder that an earlier run wrote, according to its record; [] without a readable record."""
    for record in RECORDS:
        try:
            regions = read_json(out / record, MAX_RECORD_BYTES)["regions"]
            names = [region["name"] for region in regions]
            masks = [out / MASKS / f"{Path(name).name}.png" for name in names if "\0" not in name]
        except (ReadError, KeyError, TypeError):
            continue
        return [path for path in (*(out / name for name in OUTPUT_FILES), *masks) if path.is_file()]
    return []


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of an earlier run in `out` if the block succeeds.

    Raises SceneError, and writes nothing, if a file would replace one that costars did not write. An OSError names
    the folder, for example if the disk is full.
    """
    check_writable(out, "--out")
    with named_errors(out), new_folder(out), locked_folder(out):
        _finish_interrupted(out)
        _check_contents(out)
        with temporary_folder(out) as partial:
            yield partial
            names = sorted(path.relative_to(partial) for path in partial.rglob("*") if path.is_file())
            _check_overwrites(out, names, list_previous_files(out))
            (partial / MANIFEST).write_text(json.dumps([str(name) for name in names]))
            os.rename(partial, out / COMMITTED)
        _move_committed(out)


@contextmanager
def lock_results(folder: Path) -> Iterator[None]:
    """Read the files of a run within the block: an interrupted write is finished first, and no other one begins."""
    with locked_folder(folder):
        _finish_interrupted(folder)
        yield


def is_interrupted(out: Path) -> bool:
    """Whether a run was killed here after it had decided to replace the files."""
    return not (out / COMMITTED).is_symlink() and (out / COMMITTED).is_dir()


def _finish_interrupted(out: Path) -> None:
    if not is_interrupted(out):
        return
    try:
        _move_committed(out)
    except OSError as error:
        raise SceneError(
            f"{out}: a run was interrupted here and cannot be finished ({error.strerror or error}); make the folder "
            f"writable, or remove {COMMITTED} from it"
        ) from None


def _move_committed(out: Path) -> None:
    """Delete the files of the earlier run that have no successor, and move the new ones, records last in both."""
    new = out / COMMITTED
    check_links(out)
    check_links(new)
    names = _read_manifest(new)
    for path in sorted({*list_previous_files(out)} - {out / name for name in names}, key=_is_record):
        path.unlink(missing_ok=True)
    for name in sorted(names, key=_is_record):
        if (new / name).is_file():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / name, out / name)
    done = mkdtemp(prefix=PREFIX, dir=out)  # in one step, and removed by a later run if this one is killed
    os.rename(new, done)
    shutil.rmtree(done)
    with suppress(OSError):  # it has masks
        (out / MASKS).rmdir()


def _is_record(path: Path) -> bool:
    return path.name in RECORDS


def _read_manifest(new: Path) -> list[Path]:
    """Names of all files that the run writes, also of those that were moved before it was killed."""
    try:
        names = [Path(name) for name in read_json(new / MANIFEST)]
    except (ReadError, TypeError):
        names = [Path("..")]
    for name in names:
        is_inside = not name.is_absolute() and ".." not in name.parts and len(name.parts) in (1, 2)
        folders = [folder / name.parts[0] for folder in (new, new.parent)] if len(name.parts) == 2 else []
        if not is_inside or any(folder.is_symlink() for folder in folders):
            raise SceneError(f"{new}: the rest of an interrupted run is damaged; remove it")
    return names
