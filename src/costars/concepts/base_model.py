"""Detects the base model family of a concept from its metadata and its tensor shapes, which must agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from costars.errors import ConceptError
from costars.model.families import (
    CROSS_KEYS_VALUES,
    FAMILIES,
    KNOWN_TITLES,
    SD2,
    SD15,
    SDXL,
    TEXT_ENCODER,
    TEXT_ENCODER_2,
)
from costars.model.weight_rules import input_width
from costars.types import Adapter, LowRank, WeightRule

# Input width of cross-attention keys -> family.
CONTEXT_WIDTHS: Mapping[int, str] = {family.text_width: family.name for family in FAMILIES.values()}
# Width of token embeddings -> family, for families with a single text encoder.
EMBEDDING_WIDTHS: Mapping[int, str] = {f.text_width: f.name for f in FAMILIES.values() if len(f.text_encoders) == 1}
# Number of cross-attention layers -> family, for families with published ED-LoRAs.
CROSS_ATTENTION_COUNTS: Mapping[int, str] = {family.cross_layers: family.name for family in (SD15, SDXL)}

_METADATA_KEYS = ("ss_base_model_version", "modelspec.architecture")
# Prefix of a metadata value -> family; "" is another base model. The first that fits counts.
_FAMILY_BY_PREFIX: Mapping[str, str] = {
    "stable-diffusion-xl-v1-refiner": "",
    "stable-diffusion-xl": SDXL.name,
    "stable-diffusion-v1": SD15.name,
    "stable-diffusion-v2": SD2.name,
    "stable-diffusion-3": "",
    "sdxl": SDXL.name,
    "sd_xl": SDXL.name,
    "sd_v1": SD15.name,
    "sd_v2": SD2.name,
    **dict.fromkeys(("sd3", "flux", "chroma", "lumina", "hunyuan", "qwen", "wan", "pixart", "stable-cascade"), ""),
    **dict.fromkeys(("z-image", "z_image", "zimage", "auraflow", "hidream", "cosmos", "anima", "kolors"), ""),
}


class FamilyStatement(NamedTuple):
    """The family of a file, "" if nothing tells it, and notes on what its metadata says."""

    family: str
    notes: tuple[str, ...]


def detect_family(
    card: Mapping[str, Any],
    metadata: Mapping[str, str],
    widths: Mapping[str, int | None],
    tokens: Mapping[str, Mapping[str, Tensor]],
    source: str,
) -> FamilyStatement:
    """Return sd15, sd2 or sdxl from the card, else the metadata, else the tensor shapes.

    widths {module path: inputs of the layer} are of the changed layers. A base model in the metadata that is not known
    is noted. Raises ConceptError if two of them contradict each other, and for any other known base model.
    """
    from_tensors = dict(_families_from_tensors(widths, tokens))
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
    family = stated or next(iter(from_tensors), "")
    unknown = [f"{key} {metadata[key][:60]!r}" for key in _METADATA_KEYS if _is_unknown(metadata.get(key, ""))]
    layers = f"its layers are of {family}" if family else "its layers do not tell a family"
    notes = [f"{source!r} says {statement}, which is not known; {layers}" for statement in unknown[:1]]
    return FamilyStatement(family, () if "family" in card else tuple(notes))


def input_widths(adapter: Adapter, weights: Mapping[str, Tensor]) -> dict[str, int | None]:
    """{module path: inputs of the layer, None if its tensors do not tell} of changed and replaced layers."""
    widths: dict[str, int | None] = {path: int(weight.shape[1]) for path, weight in weights.items()}
    for path, entry in adapter.items():
        first = entry if isinstance(entry, LowRank) else entry.parts[0][0]
        widths[path] = input_width(first) if isinstance(first, WeightRule) else int(first.down.shape[1])
    return widths


def check_base_model(card: Mapping[str, Any], metadata: Mapping[str, str], source: str) -> None:
    """Raise ConceptError if the metadata names an unsupported base model."""
    _family_from_metadata(card, metadata, source)


def _family_from_metadata(card: Mapping[str, Any], metadata: Mapping[str, str], source: str) -> tuple[str, str]:
    """(family, the entry that names it), or ("", "")."""
    if "family" in card:
        family = card["family"]
        if family not in FAMILIES:
            raise ConceptError(
                f"{source}: unknown family {str(family)[:40]!r} in its card; known: {', '.join(FAMILIES)}; "
                "correct the card, or use another file"
            )
        return str(family), "its card"
    for key in _METADATA_KEYS:
        value = metadata.get(key, "")
        prefix = _known_prefix(value)
        if prefix is not None and not _FAMILY_BY_PREFIX[prefix]:
            raise ConceptError(f"{source}: made for {value[:60]!r} ({key}); use a file for {KNOWN_TITLES}")
        if prefix is not None:
            return _FAMILY_BY_PREFIX[prefix], f"{key} {value[:60]!r}"
    return "", ""


def _known_prefix(value: str) -> str | None:
    return next((prefix for prefix in _FAMILY_BY_PREFIX if value.lower().startswith(prefix)), None)


def _is_unknown(value: str) -> bool:
    return bool(value.strip()) and _known_prefix(value) is None


def _families_from_tensors(
    widths: Mapping[str, int | None], tokens: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[tuple[str, str]]:
    """(family, evidence) for each tensor whose shape occurs in one family only."""
    for path, width in widths.items():
        if path.startswith(f"{TEXT_ENCODER_2}."):
            yield SDXL.name, "second text encoder"
        elif path.endswith(CROSS_KEYS_VALUES) and width is not None and width in CONTEXT_WIDTHS:
            yield CONTEXT_WIDTHS[width], f"{path!r} has input width {width}"
    for token, parts in tokens.items():
        size = int(parts[TEXT_ENCODER].shape[-1]) if TEXT_ENCODER in parts else 0
        if TEXT_ENCODER_2 in parts:
            yield SDXL.name, f"{token!r} has embeddings for two text encoders"
        elif size in EMBEDDING_WIDTHS:
            yield EMBEDDING_WIDTHS[size], f"{token!r} has embeddings of width {size}"
