"""One part of a checkpoint from its folder, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def part_of(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A module in eval mode, its weights from safetensors only. Raises LookupError if one is not in the file."""
    key = "torch_dtype" if hasattr(kind, "load_config") else "dtype"
    options = {key: dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    if not _plain(folder) and any(folder.glob("*.fp16.safetensors")):
        options["variant"] = "fp16"
    module, info = kind.from_pretrained(folder, **options)
    absent = sorted(k for k in info["missing_keys"] if not k.endswith("position_ids"))
    if absent:
        raise LookupError(f"the file of {folder.name} lacks {len(absent)} weights, {absent[0]} first")
    return module.eval().requires_grad_(False)


def _plain(folder: Path) -> bool:
    return any(".fp16." not in path.name for path in folder.glob("*.safetensors"))
