"""Concept files: what is in a .safetensors adapter or textual inversion, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from costars.concepts.base_model import check_said, family_of
from costars.concepts.full_weights import OURS as OUR_WEIGHTS
from costars.concepts.full_weights import is_replaced, read_replaced
from costars.concepts.keys import PEFT_PREFIX
from costars.concepts.lora import read_adapter, with_axes
from costars.concepts.lora_alpha import part_scales
from costars.concepts.metadata import json_object, read_words
from costars.concepts.textual_inversion import OURS, is_inversion, is_words, read_inversion, read_ours, two_files
from costars.concepts.unsupported import refuse
from costars.errors import ConceptError
from costars.files.safetensors_header import read_header, sha256_of
from costars.types import Concept, LowRank

# Part of a key -> who writes such keys; the first that any key holds is the file's format.
FORMATS: Mapping[str, str] = {
    OURS: "costars",
    OUR_WEIGHTS: "costars",
    "_custom_diffusion": "Custom Diffusion",
    ".hada_w1_a": "LyCORIS LoHa",
    "lora_unet_": "kohya",
    "lora_te": "kohya",
    PEFT_PREFIX: "peft",
    ".lora_": "diffusers",
    ".lora.": "diffusers",
    "_lora.": "diffusers",
}


def load_concept(path: Path, name: str, source: str) -> Concept:
    """Read a concept; its header is checked before any tensor is, and nothing in it is skipped.

    source is how the scene called it. Of an SDXL textual inversion in diffusers' two files NAME and NAME_2
    the first is named, and the second is read with it. Class and trigger come from the file's metadata, if it has any;
    the family of a file that neither says nor shows one is "".
    Raises ConceptError with one line on what is damaged, unknown or made for another base model.
    """
    header = read_header(path)
    check_said(_card(path, header.metadata), header.metadata, source)
    refuse(header.tensors, source)
    sha256, tensors = sha256_of(path), _read(path)
    second = path.with_name(f"{path.stem}_2{path.suffix}")
    both = None
    if is_words(tensors) and second.is_file() and set(read_header(second).tensors) == set(tensors):
        both = two_files(tensors, _read(second))
    if both is None:
        return concept_of(tensors, header.metadata, path, name, source, sha256)
    concept = concept_of(both, header.metadata, path, name, source, sha256_of(path, second))
    return replace(concept, format="textual inversion")


def concept_of(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, name: str, source: str, sha256: str
) -> Concept:
    """The concept that these tensors and metadata are; see load_concept."""
    card = _card(path, metadata)
    scales = part_scales(metadata, tensors, path, source)
    ours = {key: tensor for key, tensor in tensors.items() if key.startswith(OURS)}
    whole = {key: tensor for key, tensor in tensors.items() if is_replaced(key)}
    rest = {key: tensor for key, tensor in tensors.items() if key not in ours and key not in whole}
    inversion = not ours and not whole and is_inversion({key: tuple(tensor.shape) for key, tensor in rest.items()})
    per_layer = card.get("per_layer") is True
    words = read_inversion(rest, name, source) if inversion else read_ours(ours, per_layer, source)
    weights = read_replaced(whole, source)
    adapter = {} if inversion or (not rest and (ours or weights)) else read_adapter(rest, scales, source)
    shapes = {**adapter, **{p: LowRank(w, w) for p, w in weights.items()}}  # a family is told by widths of down
    family = family_of(card, metadata, shapes, words, source)
    trigger = read_words(card, "trigger", path.name) or " ".join(words)
    return Concept(
        name=name,
        class_name=read_words(card, "class_name", path.name),
        trigger=trigger,
        family=family,
        adapter=with_axes(adapter, family),
        source=source,
        sha256=sha256,
        licence=read_words(card, "licence", path.name),
        format="textual inversion" if inversion else format_of(tensors),
        tokens={word: words[word] for word in sorted(words, key=trigger.find)},
        per_layer=per_layer,
        weights=weights,
    )


def read_card(path: Path) -> dict[str, Any]:
    """The card in a concept file's metadata, without its weights."""
    return _card(path, read_header(path).metadata)


def _card(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    return json_object(metadata.get("costars", "{}"), f"{path.name}: its metadata 'costars'")


def format_of(keys: Iterable[str]) -> str:
    """Who writes files with such keys."""
    listed = list(keys)
    return next((name for part, name in FORMATS.items() if any(part in key for key in listed)), "unknown")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        what = " ".join(str(error).split())
        raise ConceptError(f"{path.name}: not a readable .safetensors file ({what}); fetch it again") from None
