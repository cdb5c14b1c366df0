"""One part of a checkpoint from its folder, whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

VARIANTS = ("", "fp16", "bf16")
# As diffusers and transformers name them: whole or in pieces.
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")


def part_of(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A module in eval mode, its weights from safetensors only. Raises LookupError if one is not in the file."""
    key = "torch_dtype" if hasattr(kind, "load_config") else "dtype"
    options = {key: dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    if variant := _variant(folder):
        options["variant"] = variant
    module, info = kind.from_pretrained(folder, **options)
    absent = sorted(k for k in info["missing_keys"] if not k.endswith("position_ids"))
    if absent:
        raise LookupError(f"the file of {folder.name} lacks {len(absent)} weights, {absent[0]} first")
    return module.eval().requires_grad_(False)


def _variant(folder: Path) -> str:
    """Which of a folder's weights are read: those without a variant's name, else of half precision."""
    found = {m[1] or "" for path in folder.iterdir() if (m := _WEIGHTS.fullmatch(path.name))}
    return next((variant for variant in VARIANTS if variant in found), "")
