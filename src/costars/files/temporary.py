"""Locks on folders, and temporary folders that a later run removes if their own run died.

A lock is flock on the folder itself: it needs no file, and the kernel releases it however its process ends. File
systems without flock (some network file systems) are used without locks; nothing of another run is removed there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

PREFIX = ".costars-"
_CLAIMED: set[tuple[int, int]] = set()  # (device, inode) of folders that runs of this process hold


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new, locked folder in `parent` for the block; those of runs that died are removed."""
    remove_leftovers(parent)
    folder, descriptor = _make_locked(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _make_locked(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(mkdtemp(prefix=PREFIX, dir=parent))
        descriptor = _open_folder(folder)
        _try_lock(descriptor, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return folder, descriptor
        os.close(descriptor)  # another run saw it before it was locked, and removed it


def remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders of runs that died; those of running ones are locked."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            descriptor = _open_folder(folder)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder for the block, and wait for a run that holds it.

    A folder that a run of this process has claimed is not locked again: flock would wait for its own process.
    """
    descriptor = _open_folder(folder, follow=True)
    try:
        if _identify(descriptor) not in _CLAIMED:
            _try_lock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def claimed_folder(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder for a whole run, which can use `locked_folder` there; yields False if it is taken."""
    descriptor = _open_folder(folder, follow=True)
    place = _identify(descriptor)
    is_ours = place not in _CLAIMED and _try_lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if is_ours:
        _CLAIMED.add(place)
    try:
        yield is_ours
    finally:
        if is_ours:
            _CLAIMED.remove(place)
        os.close(descriptor)


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder with its parents for the block; those that are still empty are removed if it fails."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # a file is in its place; FileExistsError means that a name is taken
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def _open_folder(folder: Path, *, follow: bool = False) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))


def _identify(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _try_lock(descriptor: int, operation: int) -> bool:
    """Whether nobody else holds the lock: True also where the file system has no locks."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
