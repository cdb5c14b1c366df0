"""Concept files: what is in a .safetensors adapter, whoever wrote it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
# peft options that change what the factors mean; none is applied here, so none is passed over.
_UNKNOWN = ("alpha_pattern", "rank_pattern", "use_rslora", "use_dora")
_PARTS = ("unet.", "text_encoder.", "text_encoder_2.")


def load_concept(path: Path, name: str, source: str) -> Concept:
    """Read an adapter in the diffusers format; raises ConceptError with one line on anything else.

    source is how the scene called it. Class and trigger come from the file's metadata, if it has any.
    """
    tensors, metadata = _read(path)
    card = _facts(metadata, "costars", path)
    return Concept(
        name=name,
        class_name=str(card.get("class_name", "")),
        trigger=str(card.get("trigger", "")),
        family=str(card.get("family", "sdxl")),
        adapter=_adapter(tensors, _alphas(_facts(metadata, "lora_adapter_metadata", path)), source),
        source=source,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence=str(card.get("licence", "")),
    )


def read_card(path: Path) -> dict[str, Any]:
    """The card in a concept file's metadata, without its weights."""
    return _facts(_read(path, weights=False)[1], "costars", path)


def _read(path: Path, weights: bool = True) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    if not path.is_file():
        raise ConceptError(f"{path.name}: no such concept file; check the path")
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            tensors = {k: file.get_tensor(k) for k in file.keys()} if weights else {}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ConceptError(f"{path.name}: not a readable .safetensors file ({error}); fetch it again") from None


def _facts(metadata: Mapping[str, str], key: str, path: Path) -> dict[str, Any]:
    """A JSON object in the metadata; empty where there is none."""
    try:
        facts = json.loads(metadata.get(key, "{}"))
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise ConceptError(f"{path.name}: its metadata {key!r} is not a JSON object; fetch the file again")
    return facts


def _alphas(facts: Mapping[str, Any]) -> dict[str, float]:
    """peft's lora_alpha of each part, as diffusers writes it; raises ConceptError for a kind not known here."""
    odd = [k for k, v in facts.items() if v and k.rpartition(".")[2] in _UNKNOWN]
    if odd:
        raise ConceptError(f"adapter metadata {odd[0]!r} is set, which costars cannot apply; save the LoRA without it")
    return {part: float(facts[f"{part}lora_alpha"]) for part in _PARTS if f"{part}lora_alpha" in facts}


def _adapter(tensors: Mapping[str, Tensor], alphas: Mapping[str, float], source: str) -> Adapter:
    adapter: dict[str, LowRank] = {}
    left = dict(tensors)
    for down_suffix, up_suffix in _PAIRS:
        for key in [k for k in tensors if k.endswith(down_suffix)]:
            stem = key.removesuffix(down_suffix)
            part = next((p for p in _PARTS if stem.startswith(p)), None)
            if part is None or stem + up_suffix not in tensors:
                continue
            down, up = left.pop(key).to(torch.float32), left.pop(stem + up_suffix).to(torch.float32)
            if not (down.ndim == up.ndim in (2, 4)) or up.shape[1] != len(down):
                shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
                raise ConceptError(f"{source}: {stem!r} has factors of shapes {shapes}; fetch it again")
            scale = alphas.get(part, float(len(down))) / len(down)
            adapter[stem] = LowRank(down, up * scale)
    if left or not adapter:
        odd = next(iter(left), "nothing at all")
        raise ConceptError(
            f"{source}: holds {odd!r}, which is no layer of an SDXL adapter in the diffusers format "
            "(unet. / text_encoder. / text_encoder_2. with lora_A and lora_B); convert it, or use another file"
        )
    return adapter
