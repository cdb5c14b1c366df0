"""Describes concept files: format, base model, layers and metadata, and why a file is not supported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costars.concepts.dialects import detect_format
from costars.concepts.import_file import read_pickle
from costars.concepts.load import load_concept, read_card
from costars.concepts.metadata import (
    read_frequent_tags,
    read_licence,
    read_model_spec,
    read_sidecar,
    read_triggers,
)
from costars.errors import ConceptError
from costars.files.magic import is_pickle
from costars.files.safetensors_header import compute_sha256, read_header
from costars.types import Concept, LowRank

MAX_KEYS = 3  # keys of tensors that are listed


def describe(path: Path) -> dict[str, Any]:
    """Everything known about a concept file, ready for JSON, with the reason if it is not supported.

    Raises ConceptError if it cannot be read.
    """
    if is_pickle(path):
        concept, card, keys = read_pickle(path)
        return _file_facts(path, keys, {}, card) | _concept_facts(concept) | {"licence": concept.licence}
    header = read_header(path)
    facts = _file_facts(path, list(header.tensors), header.metadata, read_card(path))
    try:
        concept = load_concept(path, path.stem, path.name)
    except ConceptError as error:
        return facts | {"cannot_be_applied": str(error)}
    return facts | _concept_facts(concept) | {"licence": concept.licence or facts["licence"]}


def _file_facts(path: Path, keys: list[str], metadata: Mapping[str, str], card: Mapping[str, Any]) -> dict[str, Any]:
    """Facts that are known without loading the tensors."""
    sidecar = read_sidecar(path)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": compute_sha256(path),
        "format": detect_format(keys),
        "tensors": len(keys),
        "keys": sorted(keys)[:MAX_KEYS],
        "stated_triggers": read_triggers(metadata, sidecar),
        "frequent_tags": read_frequent_tags(metadata),
        "licence": read_licence(metadata, sidecar),
        "card": dict(card),
        "modelspec": read_model_spec(metadata),
        "sidecar": sidecar,
    }


def _concept_facts(concept: Concept) -> dict[str, Any]:
    return {
        "sha256": concept.sha256,
        "format": concept.format,
        "family": concept.family,
        "class_name": concept.class_name,
        "trigger": concept.trigger,
        "layers": dict(Counter(layer.partition(".")[0] for layer in concept.adapter)),
        "ranks": sorted({len(entry.down) for entry in concept.adapter.values() if isinstance(entry, LowRank)}),
        "whole_layers": sum(not isinstance(entry, LowRank) for entry in concept.adapter.values())
        + len(concept.weights),
        "notes": list(concept.notes),
        "words": {token: {part: list(t.shape) for part, t in parts.items()} for token, parts in concept.tokens.items()},
        "per_layer": concept.per_layer,
    }
