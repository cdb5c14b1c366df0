"""What a concept file is, in full: for a person who wonders whether it can be cast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costars.concepts.import_file import read_pickle
from costars.concepts.load import format_of, load_concept, read_card
from costars.concepts.metadata import frequent_tags, model_spec, read_sidecar, stated_licence, stated_triggers
from costars.errors import ConceptError
from costars.files.magic import is_pickle
from costars.files.safetensors_header import read_header, sha256_of
from costars.types import Concept

SHOWN = 3  # keys of tensors


def describe(path: Path) -> dict[str, Any]:
    """Everything known of a file, ready for JSON, with the reason where it cannot be applied.

    Raises ConceptError if it cannot be read.
    """
    if is_pickle(path):
        concept, card, keys = read_pickle(path)
        return _of_file(path, keys, {}, card) | _of_concept(concept) | {"licence": concept.licence}
    header = read_header(path)
    facts = _of_file(path, list(header.tensors), header.metadata, read_card(path))
    try:
        concept = load_concept(path, path.stem, path.name)
    except ConceptError as error:
        return facts | {"cannot_be_applied": str(error)}
    return facts | _of_concept(concept) | {"licence": concept.licence or facts["licence"]}


def _of_file(path: Path, keys: list[str], metadata: Mapping[str, str], card: Mapping[str, Any]) -> dict[str, Any]:
    """What a file tells without being understood."""
    beside = read_sidecar(path)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "format": format_of(keys),
        "tensors": len(keys),
        "keys": sorted(keys)[:SHOWN],
        "stated_triggers": stated_triggers(metadata, beside),
        "frequent_tags": frequent_tags(metadata),
        "licence": stated_licence(metadata, beside),
        "card": dict(card),
        "modelspec": model_spec(metadata),
        "sidecar": beside,
    }


def _of_concept(concept: Concept) -> dict[str, Any]:
    return {
        "sha256": concept.sha256,
        "format": concept.format,
        "family": concept.family,
        "class_name": concept.class_name,
        "trigger": concept.trigger,
        "layers": dict(Counter(layer.partition(".")[0] for layer in concept.adapter)),
        "ranks": sorted({len(entry.down) for entry in concept.adapter.values()}),
        "words": {word: {part: list(t.shape) for part, t in parts.items()} for word, parts in concept.tokens.items()},
        "per_layer": concept.per_layer,
    }
