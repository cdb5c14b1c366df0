"""One part of a checkpoint from its folder, whole or not at all."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from costars.errors import CostarsError
from costars.files.safetensors_header import read_header

VARIANTS = ("", "fp16", "bf16")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# As diffusers and transformers name them: whole or in pieces.
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")


def part_of(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A module in eval mode, its weights from safetensors only, whose header is checked before one is read.

    Raises LookupError if one is not in the file, or the file is not what its name says.
    """
    if lack := lack_of_weights(folder):
        raise LookupError(f"{folder.name} {lack}")
    key = "torch_dtype" if hasattr(kind, "load_config") else "dtype"
    options = {key: dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    variants = _variants(path.name for path in folder.iterdir())
    if variant := _first(variants.values()):
        options["variant"] = variant
    for name in (n for n, v in variants.items() if v == variant):
        try:
            read_header(folder / name)
        except CostarsError as error:
            raise LookupError(f"{folder.name}/{error}") from error
    module, info = kind.from_pretrained(folder, **options)
    absent = sorted(k for k in info["missing_keys"] if not k.endswith("position_ids"))
    if absent:
        raise LookupError(f"the file of {folder.name} lacks {len(absent)} weights, {absent[0]} first")
    return module.eval().requires_grad_(False)


def lack_of_weights(folder: Path) -> str | None:
    """What a part's folder has in the place of weights that are read; None where it has some."""
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return None
    pickle = next((name for name in names if name.endswith(PICKLES)), None)
    return f"has only a pickle ({pickle}), which may run code and is not read" if pickle else "has no weights"


def never_read(paths: Iterable[str]) -> list[str]:
    """Of the files of a whole checkpoint the weights that are left out, their folder having others."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folders[path.rpartition("/")[0]].append(path)
    left = []
    for files in folders.values():
        variants = _variants(files)
        left += [path for path, variant in variants.items() if variant != _first(variants.values())]
    return left


def _variants(paths: Iterable[str]) -> dict[str, str]:
    """The variant of every file of weights, "" for one without."""
    return {path: m[1] or "" for path in paths if (m := _WEIGHTS.fullmatch(path.rpartition("/")[2]))}


def _first(variants: Iterable[str]) -> str:
    """Which of a folder's weights are read: those without a variant's name, else of half precision."""
    found = set(variants)
    return next((variant for variant in VARIANTS if variant in found), "")
