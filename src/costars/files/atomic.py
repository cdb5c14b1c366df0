"""Atomic writes: a file or a folder appears complete, or the old content stays."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from torch import Tensor

from costars.errors import ConceptError
from costars.files.temporary import new_folder, temporary_folder
from costars.files.tensors import save_tensors, to_oserror

SUFFIX = ".safetensors"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)  # file systems without hard links


class TensorFile(NamedTuple):
    """Contents of one .safetensors file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@contextmanager
def atomic_file(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path that becomes `target` if the block succeeds.

    Without `replace` an existing target raises FileExistsError, also one that another process has made meanwhile. An
    OSError names the target, for example if the disk is full.
    """
    with named_errors(target), new_folder(target.parent), temporary_folder(target.parent) as folder:
        partial = folder / target.name
        yield partial
        if replace:
            os.replace(partial, target)
        else:
            _place_exclusively(partial, target)


@contextmanager
def named_errors(target: Path) -> Iterator[None]:
    """Within the block, an error of the system names the target instead of a temporary file or no file at all."""
    try:
        yield
    except FileExistsError:
        raise
    except SafetensorError as error:
        raise to_oserror(error, target) from None
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(target)) from None


def _place_exclusively(partial: Path, target: Path) -> None:
    """Give a file its name. Raises FileExistsError if the name is taken."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # the name is ours now
        os.replace(partial, target)


def write_safetensors(files: Mapping[str, TensorFile], target: Path, as_folder: bool, overwrite: bool) -> list[Path]:
    """Write {name: file} into the folder `target`, or the only file as `target` itself, and return the paths.

    Raises ConceptError if `target` exists and `overwrite` is false. Links and folders that contain other files
    are never replaced. An OSError names the target.
    """
    with named_errors(target), new_folder(target.parent), temporary_folder(target.parent) as temporary:
        _restore(target, as_folder)
        check_target(target, as_folder, overwrite)
        new = temporary / target.name
        if as_folder:
            new.mkdir()
        for name, file in files.items():
            save_tensors(file.tensors, new / name if as_folder else new, file.metadata)
        check_target(target, as_folder, overwrite)
        try:
            _place(new, target, as_folder, overwrite)
        except FileExistsError:
            raise _exists(target) from None
    return [target / name for name in files] if as_folder else [target]


def check_target(target: Path, as_folder: bool, overwrite: bool) -> None:
    """Raises ConceptError if a file or folder cannot be written to `target`; see write_safetensors."""
    if as_folder == (target.suffix == SUFFIX):
        kind = f"a folder, which must not end with {SUFFIX}" if as_folder else f"one file, which must end with {SUFFIX}"
        raise ConceptError(f"--out {target}: this concept is written as {kind}; choose another --out")
    if not (target.exists() or target.is_symlink()):
        return
    if not overwrite:
        raise _exists(target)
    is_plain = not target.is_symlink() and (target.is_dir() if as_folder else target.is_file())
    if not is_plain or (as_folder and any(path.suffix != SUFFIX or not path.is_file() for path in target.iterdir())):
        kind = f"folder of {SUFFIX} files only" if as_folder else "plain file"
        raise ConceptError(f"{target} is not a {kind} and is not replaced; choose another --out")


def _exists(target: Path) -> ConceptError:
    return ConceptError(f"{target} already exists; choose another --out, or use --replace")


def _place(new: Path, target: Path, as_folder: bool, overwrite: bool) -> None:
    """Move `new` to `target` in one step; what it replaces is in the place of `new` afterwards."""
    if as_folder and target.is_dir():
        if not exchange(new, target):
            _swap(new, target, _old(target))
    elif as_folder:
        new.rename(target)  # onto nothing, or an empty folder that has appeared meanwhile
    elif overwrite:
        os.replace(new, target)
    else:
        _place_exclusively(new, target)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step (renameat2); False where the system or the file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    return bool(call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _old(target: Path) -> Path:
    return target.with_name(f".costars.old.{target.name}")


def _swap(new: Path, target: Path, old: Path) -> None:
    """Exchange in two steps; after an interruption between them, `_restore` takes the first one back."""
    target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        old.rename(target)
        raise
    old.rename(new)


def _restore(target: Path, as_folder: bool) -> None:
    """Bring back a folder that an interrupted `_swap` had moved away, or remove it if the swap was almost done."""
    old = _old(target)
    if not as_folder or not old.is_dir() or old.is_symlink():
        return
    if not target.exists():
        old.rename(target)
        return
    for path in old.iterdir():
        path.unlink()
    old.rmdir()
