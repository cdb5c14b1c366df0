"""Detects the base model family of a concept from its metadata and its tensor shapes, which must agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from costars.errors import ConceptError
from costars.types import Adapter

FAMILIES = ("sd15", "sd2", "sdxl")

CONTEXT_WIDTHS: Mapping[int, str] = {768: "sd15", 1024: "sd2", 2048: "sdxl"}  # inputs of cross-attention keys
EMBEDDING_WIDTHS: Mapping[int, str] = {768: "sd15", 1024: "sd2"}  # token embeddings of a single text encoder
CROSS_ATTENTION_COUNTS: Mapping[int, str] = {16: "sd15", 70: "sdxl"}  # cross-attention layers of the UNet

_ARCHITECTURE = "modelspec.architecture"  # a closed list of names, while kohya's key may hold any text
_METADATA_KEYS = ("ss_base_model_version", _ARCHITECTURE)
# Prefix of a metadata value -> family; "" is another base model. The first that fits counts.
_FAMILY_BY_PREFIX: Mapping[str, str] = {
    "stable-diffusion-xl-v1-refiner": "",
    "stable-diffusion-xl": "sdxl",
    "stable-diffusion-v1": "sd15",
    "stable-diffusion-v2": "sd2",
    "stable-diffusion-3": "",
    "sdxl": "sdxl",
    "sd_v1": "sd15",
    "sd_v2": "sd2",
    **dict.fromkeys(("sd3", "flux", "chroma", "lumina", "hunyuan", "qwen", "wan", "pixart", "stable-cascade"), ""),
    **dict.fromkeys(("z-image", "z_image", "zimage", "auraflow", "hidream", "cosmos", "anima", "kolors"), ""),
}


def detect_family(
    card: Mapping[str, Any],
    metadata: Mapping[str, str],
    adapter: Adapter,
    tokens: Mapping[str, Mapping[str, Tensor]],
    source: str,
) -> str:
    """Return sd15, sd2 or sdxl from the card, else the metadata, else the tensor shapes; "" if none tells.

    Raises ConceptError if two of them contradict each other, and for any other base model.
    """
    from_tensors = dict(_families_from_tensors(adapter, tokens))
    if len(from_tensors) > 1:
        families = " and to ".join(f"{family} ({evidence})" for family, evidence in from_tensors.items())
        raise ConceptError(f"{source}: layers belong to {families}; use a file made for one base model")
    stated, origin = _family_from_metadata(card, metadata, source)
    if stated and from_tensors and stated not in from_tensors:
        family, evidence = next(iter(from_tensors.items()))
        raise ConceptError(
            f"{source}: metadata says {stated} ({origin}), but layers belong to {family} ({evidence}); "
            "use a file with correct metadata"
        )
    return stated or next(iter(from_tensors), "")


def check_base_model(card: Mapping[str, Any], metadata: Mapping[str, str], source: str) -> None:
    """Raise ConceptError if the metadata names an unsupported base model."""
    _family_from_metadata(card, metadata, source)


def _family_from_metadata(card: Mapping[str, Any], metadata: Mapping[str, str], source: str) -> tuple[str, str]:
    """(family, the entry that names it), or ("", "")."""
    if "family" in card:
        family = card["family"]
        if family not in FAMILIES:
            raise ConceptError(
                f"{source}: unknown family {str(family)[:40]!r} in its card; known: {', '.join(FAMILIES)}"
            )
        return str(family), "its card"
    for key in _METADATA_KEYS:
        value = metadata.get(key, "")
        prefix = next((p for p in _FAMILY_BY_PREFIX if value.lower().startswith(p)), None)
        is_unknown_architecture = key == _ARCHITECTURE and value and prefix is None
        if is_unknown_architecture or (prefix is not None and not _FAMILY_BY_PREFIX[prefix]):
            raise ConceptError(f"{source}: made for {value[:60]!r} ({key}); use a file for SD 1.5, SD 2 or SDXL")
        if prefix is not None:
            return _FAMILY_BY_PREFIX[prefix], f"{key} {value[:60]!r}"
    return "", ""


def _families_from_tensors(adapter: Adapter, tokens: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, str]]:
    """(family, evidence) for each tensor whose shape occurs in one family only."""
    for path, entry in adapter.items():
        if path.startswith("text_encoder_2."):
            yield "sdxl", "second text encoder"
        elif path.endswith(("attn2.to_k", "attn2.to_v")) and entry.down.shape[1] in CONTEXT_WIDTHS:
            width = entry.down.shape[1]
            yield CONTEXT_WIDTHS[width], f"{path!r} has input width {width}"
    for token, parts in tokens.items():
        width = parts["text_encoder"].shape[-1] if "text_encoder" in parts else 0
        if "text_encoder_2" in parts:
            yield "sdxl", f"{token!r} has embeddings for two text encoders"
        elif width in EMBEDDING_WIDTHS:
            yield EMBEDDING_WIDTHS[width], f"{token!r} has embeddings of width {width}"
