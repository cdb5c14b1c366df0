"""Writes concepts as costars' own files: diffusers' keys, the embeddings beside them, and a card in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import frexp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from costars.concepts import full_weights, textual_inversion, whole_changes
from costars.errors import ConceptError
from costars.files.atomic import atomic_file
from costars.files.tensors import save_tensors
from costars.types import Concept, LowRank


def write_concept(concept: Concept, card: Mapping[str, Any], target: Path, *, replace: bool = True) -> None:
    """Write a concept atomically and losslessly: reading the file gives the same numbers.

    Without `replace` an existing target raises FileExistsError. Raises ConceptError for a tensor that is not finite.
    """
    with atomic_file(target, replace=replace) as partial:
        save_concept(concept, card, partial)


def save_concept(concept: Concept, card: Mapping[str, Any], target: Path) -> None:
    """Write a concept's file. Raises ConceptError for a tensor that is not finite."""
    whole = textual_inversion.to_tensors(concept.tokens) | full_weights.to_tensors(concept.weights)
    tensors = {
        key: to_smallest_dtype(tensor) for key, tensor in (whole | whole_changes.to_tensors(concept.adapter)).items()
    }
    for path, entry in concept.adapter.items():
        if isinstance(entry, LowRank):
            tensors |= {f"{path}.{name}": tensor for name, tensor in _lora_tensors(entry).items()}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ConceptError(f"{concept.name}: non-finite weights in {name}, so it is not written; use another file")
    save_tensors(tensors, target, {"format": "pt", "costars": json.dumps(card)})


def to_smallest_dtype(tensor: Tensor) -> Tensor:
    """Convert to the smallest floating-point type that represents every element exactly."""
    tensor = tensor.to(torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        small = tensor.to(dtype)
        if torch.equal(small.to(torch.float32), tensor):
            return small.contiguous()
    return tensor.contiguous()


def _lora_tensors(entry: LowRank) -> dict[str, Tensor]:
    """Both factors, with an alpha if up fits half precision only without its scale alpha / rank."""
    tensors = {"lora_A.weight": to_smallest_dtype(entry.down), "lora_B.weight": to_smallest_dtype(entry.up)}
    if tensors["lora_B.weight"].dtype is torch.float32:
        factor = 2.0 ** (15 - frexp(float(entry.up.abs().max()))[1])  # a power of two, so the product is exact
        up = to_smallest_dtype(entry.up * factor)
        if up.dtype is not torch.float32:
            tensors |= {"lora_B.weight": up, "alpha": torch.tensor(len(entry.down) / factor)}
    return tensors
