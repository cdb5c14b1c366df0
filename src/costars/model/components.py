"""Load one component of a checkpoint from its folder, complete and from safetensors only."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch

from costars.errors import CostarsError
from costars.files.safetensors_header import read_header
from costars.model.checkpoint_keys import is_unused, list_keys

VARIANTS = ("", "fp16", "bf16")  # in the order of preference
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# File names of diffusers and transformers, whole or sharded.
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")
_BYTES = ("U8", "I8")  # types of quantized weights
# CLIP's other half, and the pooled text of an encoder that gives none, in a text encoder's folder.
_OTHER_HALF = re.compile(r"vision_model\.|visual_projection\.|text_projection\.")


def load_component(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A module of this class in eval mode and without gradients, its weights from safetensors.

    File headers are checked before weights are read. Raises LookupError for missing weights, for quantized ones, for a
    file that is not safetensors, and for layers in a part of a diffusion model that its configuration does not have.
    """
    if problem := find_weights_problem(folder):
        raise LookupError(f"{folder.name} {problem}")
    key = "torch_dtype" if hasattr(kind, "load_config") else "dtype"
    options = {key: dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    variants = _variant_by_file(path.name for path in folder.iterdir())
    if variant := _preferred_variant(variants.values()):
        options["variant"] = variant
    for name in (n for n, v in variants.items() if v == variant):
        try:
            entries = read_header(folder / name).tensors
        except CostarsError as error:
            raise LookupError(f"{folder.name}/{error}") from error
        if quantized := [k for k, entry in entries.items() if entry.dtype in _BYTES and not is_unused(k)]:
            raise LookupError(f"{folder.name}/{name} has quantized weights ({list_keys(quantized)}); use float16 ones")
    module, info = kind.from_pretrained(folder, **options)
    missing = set(info["missing_keys"])
    if hasattr(module, "encoder") and hasattr(module, "quant_conv"):
        missing -= drop_missing_encoder(module, set(module.state_dict()) - missing)
    missing = {key for key in missing if not key.endswith("position_ids")}
    if missing:
        raise LookupError(f"{folder.name} lacks {len(missing)} weights, the first is {min(missing)}")
    unread = sorted(key for key in info["unexpected_keys"] if not is_unused(key) and not _OTHER_HALF.match(key))
    if unread and (hasattr(kind, "load_config") or kind.__name__.startswith("CLIPText")):
        raise LookupError(
            f"{folder.name} has {list_keys(unread)}, which its config.json has no layer for; pictures would be wrong"
        )
    return module.eval().requires_grad_(False)


def drop_missing_encoder(vae: Any, found: Collection[str]) -> set[str]:
    """Remove the encoder of a VAE without weights for it, and return the names of the weights that go with it."""
    if any(name.startswith("encoder.") for name in found):
        return set()
    gone = {name for name in vae.state_dict() if name.startswith(("encoder.", "quant_conv."))}
    vae.encoder = None
    if not any(name.startswith("quant_conv.") for name in found):
        vae.quant_conv = None
    return gone


def find_weights_problem(folder: Path) -> str | None:
    """Why no weights can be read from a component's folder; None if there are some."""
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return None
    pickle = next((name for name in names if name.endswith(PICKLES)), None)
    return f"has only a pickle ({pickle}), which can run code and is not read" if pickle else "has no weights"


def list_unused_weights(paths: Iterable[str]) -> list[str]:
    """Weight files of a checkpoint that are never read, because their folder has a preferred variant."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folders[path.rpartition("/")[0]].append(path)
    unused = []
    for files in folders.values():
        variants = _variant_by_file(files)
        unused += [path for path, variant in variants.items() if variant != _preferred_variant(variants.values())]
    return unused


def _variant_by_file(paths: Iterable[str]) -> dict[str, str]:
    """{weight file: its variant}, "" for a file without one."""
    return {path: m[1] or "" for path in paths if (m := _WEIGHTS.fullmatch(path.rpartition("/")[2]))}


def _preferred_variant(variants: Iterable[str]) -> str:
    found = set(variants)
    return next((variant for variant in VARIANTS if variant in found), "")
