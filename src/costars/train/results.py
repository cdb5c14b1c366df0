"""What was taught, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from costars.concepts.saving import write_concept
from costars.train.loop import Taught


def write(taught: Taught, targets: Sequence[Path]) -> None:
    """Write each concept to its .safetensors with a card; a file appears whole or not at all."""
    for concept, target in zip(taught.concepts, targets, strict=True):
        said = {"name": concept.name, "class_name": concept.class_name, "trigger": concept.trigger}
        write_concept(concept, said | taught.card, target)
