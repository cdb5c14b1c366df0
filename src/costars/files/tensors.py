"""Tensors of .safetensors files: read after their header was checked, and written with errors that name the file."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from costars.errors import ConceptError, CostarsError, to_one_line
from costars.files.safetensors_header import read_header

_SYSTEM_ERROR = re.compile(r"os error (\d+)")


def read_tensors(path: Path, error: type[CostarsError] = ConceptError) -> dict[str, Tensor]:
    """Every tensor of a file by its key. Raises `error` if the file is missing or damaged."""
    read_header(path, error)
    try:
        if not _is_utf8(path):  # safetensors opens no other paths
            return load(path.read_bytes())
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as problem:  # besides its own, safetensors raises many types for dtypes that torch lacks
        what = to_one_line(problem)
        raise error(f"{path.name}: not a readable .safetensors file ({what}); fetch it again") from None


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file. Raises OSError with the error number of the system, for example ENOSPC."""
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as problem:
        raise to_oserror(problem, path) from None


def to_oserror(problem: Exception, path: Path) -> OSError:
    """safetensors reports an error of the system as text; the OSError that it stands for."""
    text = " ".join(str(problem).split())
    number = _SYSTEM_ERROR.search(text)
    code = int(number[1]) if number else errno.EIO
    return OSError(code, os.strerror(code) if number else text, str(path))
