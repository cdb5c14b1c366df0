"""Files put where a person wants them: all of them whole, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from costars.errors import ConceptError

ENDING = ".safetensors"


class File(NamedTuple):
    """What one .safetensors holds."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def place(files: Mapping[str, File], target: Path, folder: bool, replaced: bool) -> list[Path]:
    """Write {name: file} into the folder target, or the only one as target itself; returns their paths.

    Raises ConceptError for a target that is there unless it is to be replaced, and for one that never is:
    a link, or a folder that holds other things.
    """
    _check(target, folder, replaced)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as near:
        made, before = Path(near) / "made", Path(near) / "before"
        if folder:
            made.mkdir()
        for name, file in files.items():
            save_file(dict(file.tensors), made / name if folder else made, metadata=dict(file.metadata))
        _move(made, target, before)
    return [target / name for name in files] if folder else [target]


def _check(target: Path, folder: bool, replaced: bool) -> None:
    if folder == (target.suffix == ENDING):
        want = f"a folder, so it does not end with {ENDING}" if folder else f"one file, so it ends with {ENDING}"
        raise ConceptError(f"--out {target}: this concept becomes {want}; give another --out")
    if not (target.exists() or target.is_symlink()):
        return
    if not replaced:
        raise ConceptError(f"{target} is there already; give another --out, or --replace it")
    plain = not target.is_symlink() and (target.is_dir() if folder else target.is_file())
    if not plain or (folder and any(path.suffix != ENDING or not path.is_file() for path in target.iterdir())):
        want = f"folder of {ENDING} files alone" if folder else "plain file"
        raise ConceptError(f"{target} is no {want}, so it is not replaced; give another --out")


def _move(made: Path, target: Path, before: Path) -> None:
    """Put what was made in its place; a folder that is there goes to before, and comes back if that fails."""
    if target.is_dir():
        target.rename(before)
    try:
        made.replace(target)
    except BaseException:
        if before.exists():
            before.rename(target)
        raise
