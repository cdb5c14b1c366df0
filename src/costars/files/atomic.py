"""Atomic writes: a file or a folder appears complete, or the old content stays."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from costars.errors import ConceptError

SUFFIX = ".safetensors"


class TensorFile(NamedTuple):
    """Contents of one .safetensors file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `target` if the block succeeds.

    Raises OSError if the file cannot be written, for example on a full disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    try:
        yield partial
        partial.replace(target)
    except SafetensorError as error:  # safetensors reports a full disk as an error of its own
        raise OSError(errno.EIO, " ".join(str(error).split()), str(target)) from None
    finally:
        partial.unlink(missing_ok=True)


def write_safetensors(files: Mapping[str, TensorFile], target: Path, as_folder: bool, overwrite: bool) -> list[Path]:
    """Write {name: file} into the folder `target`, or the only file as `target` itself, and return the paths.

    Raises ConceptError if `target` exists and `overwrite` is false. Links and folders that contain other files
    are never replaced.
    """
    _check_target(target, as_folder, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        if as_folder:
            new.mkdir()
        for name, file in files.items():
            save_file(dict(file.tensors), new / name if as_folder else new, metadata=dict(file.metadata))
        _swap(new, target, old)
    return [target / name for name in files] if as_folder else [target]


def _check_target(target: Path, as_folder: bool, overwrite: bool) -> None:
    if as_folder == (target.suffix == SUFFIX):
        kind = f"a folder, which must not end with {SUFFIX}" if as_folder else f"one file, which must end with {SUFFIX}"
        raise ConceptError(f"--out {target}: this concept is written as {kind}; choose another --out")
    if not (target.exists() or target.is_symlink()):
        return
    if not overwrite:
        raise ConceptError(f"{target} already exists; choose another --out, or use --replace")
    is_plain = not target.is_symlink() and (target.is_dir() if as_folder else target.is_file())
    if not is_plain or (as_folder and any(path.suffix != SUFFIX or not path.is_file() for path in target.iterdir())):
        kind = f"folder of {SUFFIX} files only" if as_folder else "plain file"
        raise ConceptError(f"{target} is not a {kind} and is not replaced; choose another --out")


def _swap(new: Path, target: Path, old: Path) -> None:
    """Move `new` to `target`; an existing folder moves to `old` first and is restored on failure."""
    if target.is_dir():
        target.rename(old)
    try:
        new.replace(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
