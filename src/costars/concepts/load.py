"""Loads concept files: .safetensors adapters, textual inversions and full weights of any known program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from costars.concepts.adapter_options import read_options
from costars.concepts.base_model import check_base_model, detect_family, input_widths
from costars.concepts.dialects import CHANGES, TOKENS, detect_format
from costars.concepts.full_weights import is_full_weight, read_full_weights
from costars.concepts.keys import is_ignored
from costars.concepts.lora import normalize_axes, read_adapter
from costars.concepts.metadata import parse_json_object, read_card_text
from costars.concepts.textual_inversion import (
    has_named_tokens,
    is_textual_inversion,
    join_encoders,
    read_textual_inversion,
    read_tokens,
)
from costars.concepts.training_metadata import check_training_metadata
from costars.concepts.unsupported import check_supported
from costars.concepts.whole_changes import read_changes
from costars.files.safetensors_header import compute_sha256, read_header
from costars.files.tensors import read_tensors
from costars.scene.prompt_syntax import escape_brackets, unescape_brackets
from costars.types import Concept


def load_concept(path: Path, name: str, source: str) -> Concept:
    """Load a concept. The header is checked before any tensor is read, and every tensor must be understood.

    `source` is what the scene calls it. For an SDXL textual inversion in diffusers' two files NAME and NAME_2, pass
    the first; the second is read with it. Class and trigger come from the metadata; the family is "" if neither
    metadata nor shapes tell it.
    Raises ConceptError if the file is damaged, has unknown tensors or is made for another base model.
    """
    header = read_header(path)
    check_base_model(_parse_card(path, header.metadata), header.metadata, source)
    check_supported(header.tensors, source)
    sha256, tensors = compute_sha256(path), read_tensors(path)
    second = second_file(path)
    joined = None
    if has_named_tokens(tensors) and second.is_file() and set(read_header(second).tensors) == set(tensors):
        joined = join_encoders(tensors, read_tensors(second))
    if joined is None:
        return to_concept(tensors, header.metadata, path, name, source, sha256)
    concept = to_concept(joined, header.metadata, path, name, source, compute_sha256(path, second))
    return replace(concept, format="textual inversion")


def second_file(path: Path) -> Path:
    """The file that holds the embeddings of SDXL's second text encoder, beside that of the first."""
    return path.with_name(f"{path.stem}_2{path.suffix}")


def to_concept(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, name: str, source: str, sha256: str
) -> Concept:
    """Build a concept from the tensors and metadata of a file; see load_concept."""
    card = _parse_card(path, metadata)
    options = read_options(metadata, tensors, path, source)
    notes = (*options.notes, *check_training_metadata(metadata, tensors, source))
    own_tokens = {key: tensor for key, tensor in tensors.items() if key.startswith(TOKENS)}
    changes = {key: tensor for key, tensor in tensors.items() if key.startswith(CHANGES)}
    used = {key: tensor for key, tensor in tensors.items() if not is_ignored(key, tensor.numel())}
    full = {key: tensor for key, tensor in used.items() if is_full_weight(key)}
    rest = {key: tensor for key, tensor in used.items() if key not in own_tokens | changes | full}
    is_inversion = len(rest) == len(tensors) and is_textual_inversion({k: tuple(t.shape) for k, t in rest.items()})
    per_layer = card.get("per_layer") is True
    tokens = read_textual_inversion(rest, name, source) if is_inversion else read_tokens(own_tokens, per_layer, source)
    weights = read_full_weights(full, source)
    has_adapter = not is_inversion and (bool(rest) or not (own_tokens or weights or changes))
    adapter = read_adapter(rest, options, source) if has_adapter else {}
    adapter = {**adapter, **read_changes(changes, source)}
    statement = detect_family(card, metadata, input_widths(adapter, weights), tokens, source)
    family, notes = statement.family, (*notes, *statement.notes)
    trigger = read_card_text(card, "trigger", path.name) or escape_brackets(" ".join(tokens))
    return Concept(
        name=name,
        class_name=read_card_text(card, "class_name", path.name),
        trigger=trigger,
        family=family,
        adapter=normalize_axes(adapter, family),
        source=source,
        sha256=sha256,
        licence=read_card_text(card, "licence", path.name),
        format="textual inversion" if is_inversion else detect_format(tensors),
        tokens={token: tokens[token] for token in sorted(tokens, key=unescape_brackets(trigger).find)},
        per_layer=per_layer,
        weights=weights,
        notes=notes,
    )


def read_card(path: Path) -> dict[str, Any]:
    """Read the card in a concept file's metadata, without its tensors."""
    return _parse_card(path, read_header(path).metadata)


def _parse_card(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    return parse_json_object(metadata.get("costars", "{}"), f"{path.name}: metadata 'costars'")
