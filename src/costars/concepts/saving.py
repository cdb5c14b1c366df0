"""Concepts as files of ours: diffusers' keys, the words beside them, and a card in the metadata."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import frexp
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from costars.concepts import full_weights as replaced
from costars.concepts import textual_inversion as words
from costars.types import Concept, LowRank


def write_concept(concept: Concept, card: Mapping[str, Any], target: Path) -> None:
    """Write a concept so that reading it gives the same numbers; the file appears whole or not at all."""
    whole = words.written(concept.tokens) | replaced.written(concept.weights)
    tensors = {key: smallest(tensor) for key, tensor in whole.items()}
    for path, entry in concept.adapter.items():
        tensors |= {f"{path}.{name}": tensor for name, tensor in _factors(entry).items()}
    with whole_file(target) as partial:
        save_file(tensors, partial, metadata={"format": "pt", "costars": json.dumps(card)})


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A file to write, which takes target's place if the block succeeds; raises OSError where a disk is full."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    try:
        yield partial
        partial.replace(target)
    except SafetensorError as error:  # so it says that a disk is full
        raise OSError(errno.EIO, " ".join(str(error).split()), str(target)) from None
    finally:
        partial.unlink(missing_ok=True)


def _factors(entry: LowRank) -> dict[str, Tensor]:
    """Both factors; with an alpha where up was in half precision before alpha / rank made it too small for it."""
    factors = {"lora_A.weight": smallest(entry.down), "lora_B.weight": smallest(entry.up)}
    if factors["lora_B.weight"].dtype is torch.float32:
        enlarged = 2.0 ** (15 - frexp(float(entry.up.abs().max()))[1])  # a power of two: no digit is lost
        up = smallest(entry.up * enlarged)
        if up.dtype is not torch.float32:
            factors |= {"lora_B.weight": up, "alpha": torch.tensor(len(entry.down) / enlarged)}
    return factors


def smallest(tensor: Tensor) -> Tensor:
    """In the smallest number format that holds every number of it exactly."""
    for dtype in (torch.float16, torch.bfloat16):
        small = tensor.to(dtype)
        if torch.equal(small.to(torch.float32), tensor):
            return small.contiguous()
    return tensor.contiguous()
