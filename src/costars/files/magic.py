"""Recognizes other file formats behind the name .safetensors by their first bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from costars.errors import CostarsError, ReadError
from costars.files.regular_file import open_regular

_USE_SAFETENSORS = "use its .safetensors version; only an ED-LoRA .pth can be converted, by costars concepts import"
# First bytes -> (what the file is, what to do).
MAGIC: Mapping[bytes, tuple[str, str]] = {
    b"PK": (
        "a zip archive (the format of torch pickles, which can run code when opened)",
        f"unpack it, or {_USE_SAFETENSORS}",
    ),
    b"\x80": ("a pickle, which can run code when opened", _USE_SAFETENSORS),
    b"<": ("a web page instead of the file", "log in there if required, and fetch the file itself"),
    b"version https://git-lfs": ("a git-LFS pointer instead of the file", "run git lfs pull"),
    b"GGUF": ("a GGUF file", "use its .safetensors version"),
    b"\x89PNG": ("an image", "pass the .safetensors file"),
    b"\xff\xd8\xff": ("an image", "pass the .safetensors file"),
    b"{": ("a JSON text file", "pass the .safetensors file beside it"),
}
PICKLES = (b"PK", b"\x80")


def check_magic(path: Path, first_bytes: bytes, error: type[CostarsError]) -> None:
    """Raise `error` if the first bytes are those of another file format."""
    start = first_bytes.lstrip(b"\xef\xbb\xbf \r\n\t")
    for magic, (what, remedy) in MAGIC.items():
        if start.startswith(magic):
            raise error(f"{path.name}: is {what}; {remedy}")


def is_pickle(path: Path) -> bool:
    """Whether a file starts like a torch pickle, whatever its name is."""
    try:
        with open_regular(path) as file:
            first_bytes = file.read(9)
    except (ReadError, OSError):  # who reads the file says why
        return False
    # A .safetensors header of 640 bytes also starts with b"\x80"; the bytes that follow tell them apart.
    return first_bytes.startswith(PICKLES) and not first_bytes.endswith(b"\0\0\0\0{")
