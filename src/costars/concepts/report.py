"""What a concept file is, in full: for a person who wonders whether it can be cast."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from costars.concepts.facts import frequent_tags, model_spec, read_sidecar, stated_licence, stated_triggers
from costars.concepts.formats import load_concept, read_card
from costars.header import read_header


def describe(path: Path) -> dict[str, Any]:
    """Everything known of a file, ready for JSON; raises ConceptError if it cannot be applied."""
    concept = load_concept(path, path.stem, path.name)
    metadata, beside = read_header(path).metadata, read_sidecar(path)
    layers = Counter(layer.partition(".")[0] for layer in concept.adapter)
    stated = stated_triggers(metadata, beside)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": concept.sha256,
        "format": concept.format,
        "family": concept.family,
        "class_name": concept.class_name,
        "trigger": concept.trigger,
        "stated_triggers": stated,
        "frequent_tags": frequent_tags(metadata),
        "licence": concept.licence or stated_licence(metadata, beside),
        "layers": dict(layers),
        "ranks": sorted({len(entry.down) for entry in concept.adapter.values()}),
        "words": {word: {part: list(t.shape) for part, t in parts.items()} for word, parts in concept.tokens.items()},
        "per_layer": concept.per_layer,
        "card": read_card(path),
        "modelspec": model_spec(metadata),
        "sidecar": beside,
    }
