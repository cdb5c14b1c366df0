"""Which base models a concept was made for: what the file says, held against what its tensors show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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
from costars.types import Adapter

# Width of a token that cross-attention reads -> family.
CONTEXT: Mapping[int, str] = {family.text_width: family.name for family in FAMILIES.values()}
# Width of a token embedding of the only text encoder -> family.
WORD: Mapping[int, str] = {width: name for width, name in CONTEXT.items() if len(FAMILIES[name].text_encoders) == 1}
# Number of cross-attention layers -> family, for those with published ED-LoRAs (an embedding for each layer).
PER_LAYER: Mapping[int, str] = {family.cross_layers: family.name for family in (SD15, SDXL)}
# Keys of kohya and of ModelSpec; start of their value -> family, "" for a base model that is none of these.
_ARCHITECTURE = "modelspec.architecture"  # of a list of names, where kohya's key may hold words of one's own
_SAID = ("ss_base_model_version", _ARCHITECTURE)
_STARTS: Mapping[str, str] = {
    "stable-diffusion-xl-v1-refiner": "",
    "stable-diffusion-xl": SDXL.name,
    "stable-diffusion-v1": SD15.name,
    "stable-diffusion-v2": SD2.name,
    "stable-diffusion-3": "",
    "sdxl": SDXL.name,
    "sd_v1": SD15.name,
    "sd_v2": SD2.name,
    **dict.fromkeys(("sd3", "flux", "chroma", "lumina", "hunyuan", "qwen", "wan", "pixart", "stable-cascade"), ""),
    **dict.fromkeys(("z-image", "z_image", "zimage", "auraflow", "hidream", "cosmos", "anima", "kolors"), ""),
}


def family_of(
    card: Mapping[str, Any],
    metadata: Mapping[str, str],
    adapter: Adapter,
    tokens: Mapping[str, Mapping[str, Tensor]],
    source: str,
) -> str:
    """sd15, sd2 or sdxl: of the card, else of other metadata, else of the tensors' sizes, else "".

    Raises ConceptError naming both where two of them contradict each other, and for another base model.
    """
    shown = dict(_shown(adapter, tokens))
    if len(shown) > 1:
        both = " and of ".join(f"{family} ({why})" for family, why in shown.items())
        raise ConceptError(f"{source}: its layers are of {both}; use a file made for one base model")
    said, why = _said(card, metadata, source)
    if said and shown and said not in shown:
        family, evidence = next(iter(shown.items()))
        raise ConceptError(
            f"{source}: its metadata says {said} ({why}), its layers are of {family} ({evidence}); "
            "use a file whose metadata is right"
        )
    return said or next(iter(shown), "")


def check_said(card: Mapping[str, Any], metadata: Mapping[str, str], source: str) -> None:
    """Raises ConceptError where a file says that it was made for another base model than those that are known here."""
    _said(card, metadata, source)


def _said(card: Mapping[str, Any], metadata: Mapping[str, str], source: str) -> tuple[str, str]:
    if "family" in card:
        family = card["family"]
        if family not in FAMILIES:
            raise ConceptError(f"{source}: its card says family {str(family)[:40]!r}; known: {', '.join(FAMILIES)}")
        return str(family), "its card"
    for key in _SAID:
        value = metadata.get(key, "")
        start = next((s for s in _STARTS if value.lower().startswith(s)), None)
        other = key == _ARCHITECTURE and value and start is None
        if other or (start is not None and not _STARTS[start]):
            raise ConceptError(f"{source}: was made for {value[:60]!r} ({key}); use one made for {KNOWN_TITLES}")
        if start is not None:
            return _STARTS[start], f"{key} {value[:60]!r}"
    return "", ""


def _shown(adapter: Adapter, tokens: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, str]]:
    """(family, what shows it), one after the other; nothing where no size is one of a known family."""
    for path, entry in adapter.items():
        if path.startswith(f"{TEXT_ENCODER_2}."):
            yield SDXL.name, "it has a second text encoder"
        elif path.endswith(CROSS_KEYS_VALUES) and entry.down.shape[1] in CONTEXT:
            size = entry.down.shape[1]
            yield CONTEXT[size], f"{path!r} reads {size} numbers per word"
    for word, parts in tokens.items():
        size = parts[TEXT_ENCODER].shape[-1] if TEXT_ENCODER in parts else 0
        if TEXT_ENCODER_2 in parts:
            yield SDXL.name, f"{word!r} is a word of two text encoders"
        elif size in WORD:
            yield WORD[size], f"{word!r} is a word of {size} numbers"
