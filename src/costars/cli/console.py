"""Messages for the user, on stderr; results go to stdout."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

import typer
from rich.console import Console

console = Console(stderr=True)
MOST_CHARACTERS = 2_000  # of an error; longer ones repeat the input
_AS_BYTES = range(0xDC80, 0xDD00)  # how Python writes bytes of a path that are not UTF-8


def print_line(line: str, style: str | None = None) -> None:
    """Print a line as it is: not wrapped, not highlighted, brackets not read as markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True, style=style)


def to_line(text: str) -> str:
    """The text as one line without control characters: it may repeat what a file or an argument has."""
    line = "".join(character if character.isprintable() else _escape(character) for character in " ".join(text.split()))
    if len(line) <= MOST_CHARACTERS:
        return line
    return f"{line[: MOST_CHARACTERS - 400]} ... {line[-400:]}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii") if ord(character) not in _AS_BYTES else character


def write_any_path() -> None:
    """Let stdout and stderr write every path byte for byte, also one that is not UTF-8."""
    codecs.register_error("costars", _encode_surrogate)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="costars")


def _encode_surrogate(error: UnicodeError) -> tuple[bytes | str, int]:
    """The byte that a surrogate of a path stands for; other characters that the terminal lacks are escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    if code in _AS_BYTES:
        return bytes([code - 0xDC00]), error.start + 1
    return error.object[error.start].encode("unicode_escape").decode("ascii"), error.start + 1


def parse_path(text: str) -> Path:
    """A path from the command line. Raises BadParameter for an empty one, which would be the working folder."""
    if not text:
        raise typer.BadParameter("is empty; give a path")
    return Path(text)


parse_path.__name__ = "path"  # what --help shows
