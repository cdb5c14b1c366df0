"""Paths that people write, and the regular files there: nothing else is opened, and never more than a limit is read."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from costars.errors import ReadError

MAX_TEXT_BYTES = 1_000_000  # of a scene, a training config or a caption file: some ten thousand lines
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_NOWHERE = (FileNotFoundError, NotADirectoryError)


def expand_user(name: str | Path) -> Path:
    """The path with ~ and ~user replaced. Raises ReadError for an unknown user."""
    try:
        return Path(name).expanduser()
    except (RuntimeError, KeyError):
        raise ReadError(name, "no such user's home folder", "write the whole path") from None


def is_there(path: Path) -> bool:
    """Whether something is at a path. Raises ReadError if a folder on the way may not be searched."""
    try:
        path.stat()
    except _NOWHERE:
        return False
    except PermissionError as error:
        raise ReadError(path, f"cannot be looked up ({error.strerror})") from None
    except (OSError, ValueError):  # too long, a circle of links, or a zero byte
        return False
    return True


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading. Raises ReadError for anything else, which is not opened: a pipe would block."""
    try:
        _check_kind(path, path.stat().st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ReadError(path, f"cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # a zero byte
        raise ReadError(repr(str(path)), f"cannot be a path ({error})") from None
    file = os.fdopen(descriptor, "rb")
    try:
        _check_kind(path, os.fstat(descriptor).st_mode)  # it may have been replaced in between
    except ReadError:
        file.close()
        raise
    return file


def check_regular(path: Path) -> None:
    """Raises ReadError if there is something at the path that is not a regular file."""
    if is_there(path):
        _check_kind(path, path.stat().st_mode)


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise ReadError(path, f"is {kind}, not a file", "give a regular file")


def read_bytes(path: Path, most: int = MAX_TEXT_BYTES) -> bytes:
    """Contents of a regular file. Raises ReadError if it cannot be read or has more than `most` bytes."""
    with open_regular(path) as file:
        try:
            content = file.read(most + 1)
        except OSError as error:
            raise ReadError(path, f"cannot be read ({error.strerror or error})") from None
    if len(content) > most:
        raise ReadError(path, f"is larger than {most} bytes, the most that is read", "give a smaller file")
    return content


def read_text(path: Path, most: int = MAX_TEXT_BYTES) -> str:
    """Text of a regular file in UTF-8, with or without a byte-order mark. Raises ReadError as read_bytes."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise ReadError(path, f"is not UTF-8 text ({byte})", "save it as UTF-8") from None
