"""Read captions and metadata beside training images."""

from __future__ import annotations

from pathlib import Path

from costars.errors import ReadError, TrainError
from costars.files import regular_file

MAX_BYTES = 100_000_000  # of a metadata file: some hundred thousand images; a caption is one line


def read_text(path: Path) -> str:
    """The text of a file in UTF-8. Raises TrainError if it is no file, too large, or not in UTF-8."""
    try:
        return regular_file.read_text(path, MAX_BYTES)
    except ReadError as error:
        raise TrainError(f"{path.name!r}: {error.reason}; {error.remedy}") from error


def first_line(text: str) -> str | None:
    """The first line that is not blank; None if all are."""
    return next((line.strip() for line in text.splitlines() if line.strip()), None)
