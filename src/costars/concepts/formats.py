"""Concept files: what is in a .safetensors adapter, whoever wrote it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from costars.errors import ConceptError
from costars.types import Adapter, Concept, LowRank

# Suffixes of the two factors: peft, and diffusers before it used peft.
_PAIRS = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
_PARTS = ("unet.", "text_encoder.", "text_encoder_2.")


def load_concept(path: Path, name: str, source: str) -> Concept:
    """Read an adapter in the diffusers format; raises ConceptError with one line on anything else.

    source is how the scene called it. Class and trigger come from the file's metadata, if it has any.
    """
    tensors, metadata = _read(path)
    card = json.loads(metadata.get("costars", "{}"))
    return Concept(
        name=name,
        class_name=card.get("class_name", ""),
        trigger=card.get("trigger", ""),
        family=card.get("family", "sdxl"),
        adapter=_adapter(tensors, _alphas(metadata), source),
        source=source,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence=card.get("licence", ""),
    )


def read_card(path: Path) -> dict[str, str]:
    """The card in a concept file's metadata, without its weights."""
    _, metadata = _read(path, weights=False)
    card: dict[str, str] = json.loads(metadata.get("costars", "{}"))
    return card


def _read(path: Path, weights: bool = True) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    if not path.is_file():
        raise ConceptError(f"{path.name}: no such concept file; check the path")
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            tensors = {k: file.get_tensor(k) for k in file.keys()} if weights else {}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ConceptError(f"{path.name}: not a readable .safetensors file ({error}); fetch it again") from None


def _alphas(metadata: Mapping[str, str]) -> dict[str, float]:
    """peft's lora_alpha of each part, from the metadata that diffusers writes; empty where none is."""
    facts = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    return {part: float(facts[f"{part}lora_alpha"]) for part in _PARTS if f"{part}lora_alpha" in facts}


def _adapter(tensors: Mapping[str, Tensor], alphas: Mapping[str, float], source: str) -> Adapter:
    adapter: dict[str, LowRank] = {}
    left = dict(tensors)
    for down_suffix, up_suffix in _PAIRS:
        for key in [k for k in left if k.endswith(down_suffix)]:
            path = key.removesuffix(down_suffix).replace(".processor.", ".").replace("_lora", "")
            part = next((p for p in _PARTS if path.startswith(p)), None)
            if part is None or (path + up_suffix not in left and key.removesuffix(down_suffix) + up_suffix not in left):
                continue
            down = left.pop(key).to(torch.float32)
            up = left.pop(key.removesuffix(down_suffix) + up_suffix).to(torch.float32)
            scale = alphas.get(part, float(len(down))) / len(down)
            adapter[path] = LowRank(down, up * scale)
    if left or not adapter:
        odd = next(iter(left), "nothing at all")
        raise ConceptError(
            f"{source}: holds {odd!r}, which is no layer of an SDXL adapter in the diffusers format "
            "(unet. / text_encoder. / text_encoder_2. with lora_A and lora_B); convert it, or use another file"
        )
    return adapter
