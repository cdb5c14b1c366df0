"""What a file is that calls itself .safetensors and is something else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from costars.errors import CostarsError

_SAFE = "use the .safetensors of it; only an ED-LoRA .pth can be turned into one, by costars concepts import"
# What the file begins with: (what it is, what to do).
FIRST_BYTES: Mapping[bytes, tuple[str, str]] = {
    b"PK": ("a zip archive, as torch's pickles are, which can run code when opened", f"unpack it, or {_SAFE}"),
    b"\x80": ("a pickle, which can run code when opened", _SAFE),
    b"<": ("a web page, not the file behind it", "log in there if it asks you to, and fetch the file itself"),
    b"version https://git-lfs": ("a git-LFS pointer, not the file it stands for", "run git lfs pull"),
    b"GGUF": ("a GGUF file", "use the .safetensors of it"),
    b"\x89PNG": ("a picture", "give the .safetensors file"),
    b"\xff\xd8\xff": ("a picture", "give the .safetensors file"),
    b"{": ("a text file in JSON", "give the .safetensors file beside it"),
}
PICKLES = (b"PK", b"\x80")


def refuse_disguise(path: Path, first: bytes, error: type[CostarsError]) -> None:
    """Raise this error if the first bytes are those of another kind of file."""
    start = first.lstrip(b"\xef\xbb\xbf \r\n\t")
    for beginning, (what, mend) in FIRST_BYTES.items():
        if start.startswith(beginning):
            raise error(f"{path.name}: is {what}; {mend}")


def is_pickle(path: Path) -> bool:
    """Whether the file begins as torch's old files do, whatever its name is."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.read(9)
    # A header of 640 bytes begins as a pickle does: what follows it tells them apart.
    return first.startswith(PICKLES) and not first.endswith(b"\0\0\0\0{")
