"""The header of a .safetensors file, checked before any of its tensors is touched.

The format: 8 bytes with the header's length, a JSON object {name: dtype, shape, offsets}, the bytes.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from costars.errors import ConceptError, CostarsError
from costars.files.magic import refuse_disguise

MAX_HEADER_BYTES = 100_000_000  # the cap of safetensors itself
MAX_TENSORS = 20_000  # an SDXL LoCon of every layer has some 3,000
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
    """One tensor of a file, not yet read."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """Every tensor of a file by its key, and the metadata."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


class _DamagedError(ValueError):
    """What is wrong, without the file's name."""


def read_header(path: Path, error: type[CostarsError] = ConceptError) -> Header:
    """The header of a file; raises this error with one line where it is anything else than whole."""
    if not path.is_file():
        raise error(f"{path}: no such file; check the path")
    try:
        text, data_bytes = _text(path, error)
        return _checked(_parsed(text), data_bytes)
    except (_DamagedError, OSError) as problem:
        what = problem.strerror if isinstance(problem, OSError) else problem
        raise error(f"{path.name}: not a readable .safetensors file ({what}); fetch it again") from None


def _text(path: Path, error: type[CostarsError]) -> tuple[bytes, int]:
    """The header's JSON, and the number of bytes after it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(64)
        length = int.from_bytes(first[:8], "little")
        if length > min(MAX_HEADER_BYTES, size - 8) or first[8:9] != b"{":
            refuse_disguise(path, first, error)
        if size < 10:
            raise _DamagedError(f"it has {size} bytes" if size else "it is empty")
        if length > MAX_HEADER_BYTES:
            raise _DamagedError(f"its header would be {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
        if length > size - 8:
            raise _DamagedError(f"cut off: its header is {length} bytes, {size - 8} are there")
        file.seek(8)
        return file.read(length), size - 8 - length


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise _DamagedError("its header is not JSON, or names a key twice") from None
    if not text.startswith(b"{"):
        raise _DamagedError("its header is not a JSON object")
    found: dict[str, Any] = parsed
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _checked(parsed: dict[str, Any], data_bytes: int) -> Header:
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _DamagedError("its metadata is not a JSON object of strings")
    if len(parsed) > MAX_TENSORS:
        raise _DamagedError(f"it has {len(parsed)} tensors, at most {MAX_TENSORS} are allowed")
    places = sorted(_place(key, entry) for key, entry in parsed.items())
    at = 0
    for begin, end, key in places:
        if begin != at:
            raise _DamagedError(f"{key!r} lies at byte {begin}, want {at}")
        at = end
    if at != data_bytes:
        cut = "cut off: " if at > data_bytes else ""
        raise _DamagedError(f"{cut}its tensors take {at} bytes, {data_bytes} are there")
    tensors = {key: Entry(entry["dtype"], tuple(entry["shape"])) for key, entry in parsed.items()}
    return Header(tensors, metadata)


def _place(key: str, entry: Any) -> tuple[int, int, str]:
    """(begin, end, key) of a tensor whose dtype, shape and number of bytes agree."""
    if len(key) > MAX_KEY:
        raise _DamagedError(f"a key of {len(key)} characters, at most {MAX_KEY} are allowed")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _DamagedError(f"{key!r} does not say its dtype, shape and data_offsets, or says more")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise _DamagedError(f"{key!r} has the dtype {str(dtype)[:20]!r}, known: {', '.join(DTYPE_BYTES)}")
    if not _counts(shape) or len(shape) > MAX_AXES or max(shape, default=0) > MAX_SIZE:
        raise _DamagedError(f"{key!r} has a shape of more than {MAX_AXES} axes or {MAX_SIZE} along one")
    if not _counts(offsets) or len(offsets) != 2:
        raise _DamagedError(f"{key!r} has data_offsets that are not two whole numbers")
    begin, end = offsets
    if end - begin != prod(shape) * DTYPE_BYTES[dtype]:
        raise _DamagedError(f"{key!r} of shape {tuple(shape)} in {dtype} does not take {end - begin} bytes")
    return begin, end, key


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def sha256_of(*paths: Path) -> str:
    """Of these files, one after the other, in hexadecimal; a folder stands for its safetensors by name."""
    digest = hashlib.sha256()
    for path in paths:
        for each in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
            with each.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
