"""One run at a time in an output folder, and no result of an earlier run is replaced unless that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from costars.errors import SceneError
from costars.files.output_folder import KINDS, check_output_folder
from costars.files.temporary import claimed_folder, new_folder


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
    """Make a folder and keep other runs out of it within the block; on failure folders that are empty are removed.

    The lock ends with the process, so a killed run leaves none. Raises SceneError if another run has the folder.
    """
    with new_folder(out), claimed_folder(out) as is_ours:
        if not is_ours:
            raise SceneError(
                f"--out {out}: another run is writing into it; wait until it has ended, or choose another folder"
            )
        yield
