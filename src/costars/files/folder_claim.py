"""One run at a time in an output folder, and no result of an earlier run is replaced unless that is asked for."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from costars.errors import SceneError
from costars.files.output_folder import KINDS, check_output_folder


def check_no_earlier_run(out: Path, kind: str, *, replace: bool) -> None:
    """Raise SceneError if `out` cannot be written to, or has a result that would be replaced without `replace`.

    `kind` is "plan" or "picture"; see `check_output_folder`.
    """
    check_output_folder(out, kind)
    if not replace and (out / KINDS[kind][-1]).is_file():
        raise SceneError(
            f"--out {out}: contains a {kind} of an earlier run; choose another folder, or use --replace (replace=True)"
        )


@contextmanager
def claim_folder(out: Path) -> Iterator[None]:
    """Create a folder and keep other runs out of it within the block; folders that stay empty are removed.

    The lock ends with the process, so a killed run leaves none. Raises SceneError if another run has the folder.
    """
    made = _make_folders(out)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        _lock(descriptor, out)
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):  # the first folder that is not empty, and those above it, stay
            for folder in made:
                folder.rmdir()


def _make_folders(out: Path) -> list[Path]:
    """Create a folder and those above it; return the new ones, the deepest first."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    return missing


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SceneError(
            f"--out {out}: another run is writing into it; wait until it has ended, or choose another folder"
        ) from None
    except OSError:  # a file system without locks: an earlier result is still looked for before anything is written
        pass
