"""Reads the header of a .safetensors file and checks it before any tensor is read.

Format: 8 bytes with the length of the header, a JSON object {name: dtype, shape, offsets}, the tensor data.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from costars.errors import ConceptError, CostarsError, ReadError
from costars.files.magic import check_magic
from costars.files.regular_file import is_there, open_regular

MAX_HEADER_BYTES = 100_000_000  # the limit of safetensors itself
MAX_TENSORS = 20_000  # an SDXL LoCon of every layer has about 3,000
MAX_KEY = 512  # characters
MAX_AXES = 5
MAX_SIZE = 65_536  # along one axis; the widest layer of SDXL has 10,240
DTYPE_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True)
class Entry:
    """Type and shape of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """Tensors of a file by key, and its metadata."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


class _DamagedError(ValueError):
    """What is wrong with a file; the caller adds the file name."""


def read_header(path: Path, error: type[CostarsError] = ConceptError) -> Header:
    """Read and check the header of a .safetensors file. Raises `error` if the file is missing or damaged."""
    try:
        if not is_there(path):
            raise error(f"{path}: no such file; check the path")
        with open_regular(path) as file:
            text, data_bytes = _read_json(path, file, error)
        return _to_header(_parse(text), data_bytes)
    except ReadError as problem:
        raise error(str(problem)) from None
    except (_DamagedError, OSError) as problem:
        what = problem.strerror if isinstance(problem, OSError) else problem
        raise error(f"{path.name}: not a readable .safetensors file ({what}); fetch it again") from None


def _read_json(path: Path, file: BinaryIO, error: type[CostarsError]) -> tuple[bytes, int]:
    """(JSON text of the header, number of bytes after it)."""
    size = os.fstat(file.fileno()).st_size
    first_bytes = file.read(64)
    length = int.from_bytes(first_bytes[:8], "little")
    if length > min(MAX_HEADER_BYTES, size - 8) or first_bytes[8:9] != b"{":
        check_magic(path, first_bytes, error)
    if size < 10:
        raise _DamagedError(f"it has {size} bytes" if size else "it is empty")
    if length > MAX_HEADER_BYTES:
        raise _DamagedError(f"header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    if length > size - 8:
        raise _DamagedError(f"truncated: header of {length} bytes, {size - 8} are present")
    file.seek(8)
    return file.read(length), size - 8 - length


def _parse(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text.decode(), object_pairs_hook=_to_unique_dict)
    except (ValueError, RecursionError):
        raise _DamagedError("header is not JSON, or has a duplicate key") from None
    if not text.startswith(b"{"):
        raise _DamagedError("header is not a JSON object")
    result: dict[str, Any] = parsed
    return result


def _to_unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of JSON pairs. Raises ValueError for a duplicate key."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError
    return result


def _to_header(parsed: dict[str, Any], data_bytes: int) -> Header:
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _DamagedError("metadata is not a JSON object of strings")
    if len(parsed) > MAX_TENSORS:
        raise _DamagedError(f"{len(parsed)} tensors, at most {MAX_TENSORS} are allowed")
    position = 0
    for begin, end, key in sorted(_check_entry(key, entry) for key, entry in parsed.items()):
        if begin != position:
            raise _DamagedError(f"{key!r} starts at byte {begin}, expected {position}")
        position = end
    if position != data_bytes:
        truncated = "truncated: " if position > data_bytes else ""
        raise _DamagedError(f"{truncated}tensors of {position} bytes, {data_bytes} are present")
    tensors = {key: Entry(entry["dtype"], tuple(entry["shape"])) for key, entry in parsed.items()}
    return Header(tensors, metadata)


def _check_entry(key: str, entry: Any) -> tuple[int, int, str]:
    """(first byte, end byte, key) of a tensor. Raises _DamagedError if dtype, shape and offsets do not agree."""
    if len(key) > MAX_KEY:
        raise _DamagedError(f"key of {len(key)} characters, at most {MAX_KEY} are allowed")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _DamagedError(f"{key!r} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _DamagedError(f"{key!r} has unknown dtype {str(dtype)[:20]!r}, known: {', '.join(DTYPE_BYTES)}")
    if not _are_sizes(shape) or len(shape) > MAX_AXES or max(shape, default=0) > MAX_SIZE:
        raise _DamagedError(f"{key!r} has an invalid shape, at most {MAX_AXES} axes of {MAX_SIZE} are allowed")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _DamagedError(f"{key!r} has invalid data_offsets, expected two non-negative integers")
    begin, end = offsets
    if end - begin != prod(shape) * DTYPE_BYTES[dtype]:
        raise _DamagedError(f"{key!r} of shape {tuple(shape)} in {dtype} does not take {end - begin} bytes")
    return begin, end, key


def _are_sizes(value: Any) -> bool:
    """Whether this is a list of non-negative integers; bool is not an integer here."""
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def compute_sha256(*paths: Path) -> str:
    """SHA-256 in hexadecimal of files read one after the other; a folder means its .safetensors files by name.

    Raises ReadError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        for file_path in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
            with open_regular(file_path) as file:
                hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
