"""Reads ED-LoRA files of Mix-of-Show and Concept Conductor as tensors under costars' keys.

The files are pickles: {"params": {"new_concept_embedding": {token: (L, d)}, "text_encoder": {...}, "unet": {...}}},
for SDXL also "new_concept_embedding_2" and "text_encoder_2". L is the number of cross-attention layers; each has
embeddings of its own (Gu et al. 2023, arXiv 2305.18292).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor

from costars.concepts.base_model import CROSS_ATTENTION_COUNTS
from costars.concepts.dialects import TOKENS
from costars.errors import ConceptError
from costars.files.regular_file import open_regular
from costars.files.safetensors_header import MAX_SIZE
from costars.scene.prompt_syntax import escape_brackets

_ADAPTERS = ("unet", "text_encoder", "text_encoder_2")
_EMBEDDINGS: Mapping[str, str] = {"new_concept_embedding": "text_encoder", "new_concept_embedding_2": "text_encoder_2"}


def read_edlora(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an ED-LoRA as (tensors under costars' keys, card). Its scale is 1: alpha is not divided by the rank.

    A missing or empty text_encoder is left unchanged. torch's restricted unpickler opens the file and runs no code.
    Raises ConceptError if the file is not an ED-LoRA.
    """
    params = _load_params(path)
    tensors: dict[str, Tensor] = {}
    for section in (s for s in _ADAPTERS if s in params):
        for key, value in _check_dict(params[section], section, path).items():
            tensors[f"{section}.{key}"] = _copy_tensor(value, f"{section}.{key}", path)
    tokens: dict[str, None] = {}
    for section in (s for s in _EMBEDDINGS if s in params):
        for token, value in _check_dict(params[section], section, path).items():
            tensors[f"{TOKENS}{_EMBEDDINGS[section]}.{token}"] = _copy_tensor(value, token, path)
            tokens[token] = None
    counts = {len(t) if t.ndim == 2 else 0 for key, t in tensors.items() if key.startswith(TOKENS)}
    if len(counts) != 1 or not counts <= set(CROSS_ATTENTION_COUNTS):
        known = " or ".join(map(str, CROSS_ATTENTION_COUNTS))
        raise ConceptError(f"{path.name}: embeddings for {sorted(counts)} layers, expected {known}; use another file")
    family = CROSS_ATTENTION_COUNTS[counts.pop()]
    return tensors, {"trigger": escape_brackets(" ".join(tokens)), "family": family, "per_layer": True}


def _load_params(path: Path) -> Mapping[str, Any]:
    try:
        _check_archive(path)
        # torch trusts the suffix of a path, so pass an open file. Its warnings about old pickles do not matter here.
        with open_regular(path) as file, warnings.catch_warnings(action="ignore"):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious pickle can raise any exception
        raise ConceptError(
            f"{path.name}: is a pickle that cannot be opened safely ({type(error).__name__}); "
            "use its .safetensors version, or fetch it again"
        ) from None
    if isinstance(loaded, dict) and "string_to_param" in loaded:
        raise ConceptError(f"{path.name}: is a pickled textual inversion; use its .safetensors version")
    params = loaded.get("params") if isinstance(loaded, dict) else None
    if not isinstance(params, dict) or "new_concept_embedding" not in params:
        raise ConceptError(f"{path.name}: is a pickle without the params of an ED-LoRA; use its .safetensors version")
    unknown = [key for key in params if key not in (*_ADAPTERS, *_EMBEDDINGS)]
    if unknown:
        raise ConceptError(
            f"{path.name}: contains {str(unknown[0])[:60]!r}, which is not part of an ED-LoRA; use another file"
        )
    return params


def _check_archive(path: Path) -> None:
    """Raise ValueError for an archive that unpacks to more than the file size: torch does not compress."""
    if is_zipfile(path):
        with ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError


def _check_dict(value: Any, section: str, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConceptError(f"{path.name}: {section!r} is not a dict of tensors; use another file")
    return value


def _copy_tensor(value: Any, key: str, path: Path) -> Tensor:
    """A copy of a dense tensor. Raises ConceptError for one that claims more elements than its storage has."""
    is_dense = isinstance(value, Tensor) and value.layout is torch.strided and value.is_floating_point()
    if (
        not is_dense
        or max(value.shape, default=0) > MAX_SIZE
        or value.numel() * value.element_size() > value.untyped_storage().nbytes()
    ):
        raise ConceptError(f"{path.name}: {key[:80]!r} is not a dense floating-point tensor; use another file")
    copy: Tensor = value.detach().clone()
    return copy.contiguous()
