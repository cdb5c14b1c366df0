"""What measured figures and drawn pictures were made from: the command and the hashes of the weights that ship."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import costars
from costars.files.atomic import atomic_file
from costars_world.judge.judge import JUDGE_WEIGHTS

# Name -> folder of the weights that ship; a file says which of them it was made with.
WEIGHTS: Mapping[str, Path] = {
    "builtin": Path(costars.__file__).parent / "builtin" / "weights",
    "judge": JUDGE_WEIGHTS.parent,
    "world2": Path(__file__).parents[1] / "world2" / "weights",
}
DRAWN = "drawn.json"  # beside the pictures of a folder: {file name: {sha256, command, weights}}


def hash_weights(*names: str) -> dict[str, str]:
    """sha256 of all .safetensors files, with their paths, of each of these WEIGHTS."""
    return {name: _hash_folder(WEIGHTS[name]) for name in names}


def _hash_folder(folder: Path) -> str:
    files = sorted(folder.rglob("*.safetensors"))
    lines = [f"{file.relative_to(folder).as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def describe_run(program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The command of a benchmark without --out, the weights that it measures, and the versions of the libraries."""
    versions = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    return {
        "command": " ".join((program, *arguments)),
        "weights": hash_weights("builtin", "judge"),
        "versions": versions,
    }


def note_picture(path: Path, command: str, *weights: str) -> None:
    """Note in DRAWN, beside a picture, its hash, its command and the weights that it was drawn with."""
    notes = path.with_name(DRAWN)
    entries = json.loads(notes.read_text()) if notes.exists() else {}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    entries[path.name] = {"sha256": sha256, "command": command, "weights": hash_weights(*weights or ("builtin",))}
    with atomic_file(notes) as partial:
        partial.write_text(json.dumps(dict(sorted(entries.items())), indent=2) + "\n")
