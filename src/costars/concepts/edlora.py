"""ED-LoRAs of Mix-of-Show and Concept Conductor, turned into tensors under our keys.

Their files are pickles: {"params": {"new_concept_embedding": {word: (L, d)}, "text_encoder": {...},
"unet": {...}}}, for SDXL with "new_concept_embedding_2" and "text_encoder_2" too. L is the number of
cross-attention layers, each of which reads words of its own (Gu et al. 2023, arXiv 2305.18292).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor

from costars.concepts.base_model import PER_LAYER
from costars.concepts.textual_inversion import OURS
from costars.errors import ConceptError
from costars.files.safetensors_header import MAX_SIZE

_ADAPTERS = ("unet", "text_encoder", "text_encoder_2")
_EMBEDDINGS: Mapping[str, str] = {"new_concept_embedding": "text_encoder", "new_concept_embedding_2": "text_encoder_2"}


def read_edlora(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors under our keys, card) of an ED-LoRA; the alpha is 1 and not divided by the rank.

    A text_encoder without layers, or none, is as its trainer left it. The file is opened by torch's
    restricted unpickler, which runs no code. Raises ConceptError for anything else than an ED-LoRA.
    """
    params = _params(path)
    tensors: dict[str, Tensor] = {}
    for section in (s for s in _ADAPTERS if s in params):
        for key, value in _mapping(params[section], section, path).items():
            tensors[f"{section}.{key}"] = _sound(value, f"{section}.{key}", path)
    words: dict[str, None] = {}
    for section in (s for s in _EMBEDDINGS if s in params):
        for word, value in _mapping(params[section], section, path).items():
            tensors[f"{OURS}{_EMBEDDINGS[section]}.{word}"] = _sound(value, word, path)
            words[word] = None
    counts = {len(t) if t.ndim == 2 else 0 for key, t in tensors.items() if key.startswith(OURS)}
    if len(counts) != 1 or not counts <= set(PER_LAYER):
        known = " or ".join(map(str, PER_LAYER))
        raise ConceptError(f"{path.name}: its words have {sorted(counts)} layers, want {known}; use another file")
    return tensors, {"trigger": " ".join(words), "family": PER_LAYER[counts.pop()], "per_layer": True}


def _params(path: Path) -> Mapping[str, Any]:
    try:
        _check_size(path)
        # An open file, for of a path torch believes the name; what it says of old pickles is no matter here.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle may raise anything
        raise ConceptError(
            f"{path.name}: is a pickle that cannot be opened safely ({type(error).__name__}); "
            "use a .safetensors of it, or fetch it again"
        ) from None
    if isinstance(loaded, dict) and "string_to_param" in loaded:
        raise ConceptError(f"{path.name}: is a textual inversion in a pickle; use the .safetensors of it")
    params = loaded.get("params") if isinstance(loaded, dict) else None
    if not isinstance(params, dict) or "new_concept_embedding" not in params:
        raise ConceptError(f"{path.name}: is a pickle without the params of an ED-LoRA; use a .safetensors of it")
    odd = [key for key in params if key not in (*_ADAPTERS, *_EMBEDDINGS)]
    if odd:
        raise ConceptError(f"{path.name}: holds {str(odd[0])[:60]!r}, which no ED-LoRA has; use another file")
    return params


def _check_size(path: Path) -> None:
    """Raise ValueError for an archive that would unpack to more than the file: torch packs nothing."""
    if is_zipfile(path):
        with ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError


def _mapping(value: Any, section: str, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ConceptError(f"{path.name}: its {section} is no table of tensors; use another file")
    return value


def _sound(value: Any, key: str, path: Path) -> Tensor:
    """A copy of a plain tensor; one that claims more numbers than its bytes hold is refused."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided and value.is_floating_point()
    if (
        not plain
        or max(value.shape, default=0) > MAX_SIZE
        or value.numel() * value.element_size() > value.untyped_storage().nbytes()
    ):
        raise ConceptError(f"{path.name}: {key[:80]!r} is no plain tensor of floating point numbers; use another file")
    copy: Tensor = value.detach().clone()
    return copy.contiguous()
