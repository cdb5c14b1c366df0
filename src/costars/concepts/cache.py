"""Keeps the concepts that were read last in memory, until their files change."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from costars.concepts.adapter_options import PEFT_OPTIONS
from costars.concepts.load import load_concept, second_file
from costars.types import Concept, LowRank, WeightRule

MAX_BYTES = 2 * 2**30  # of all tensors that are kept: about twenty LoRAs of SDXL
Key = tuple[object, ...]


@dataclass
class ConceptCache:
    """Concepts by file, name and source, the last used one last; all together have at most max_bytes."""

    max_bytes: int = MAX_BYTES
    concepts: OrderedDict[Key, Concept] = field(default_factory=OrderedDict)

    def load(self, path: Path, name: str, source: str) -> Concept:
        """As load_concept; a file is read again if it, or a file that is read with it, was changed."""
        files = (path, second_file(path), path.with_name(PEFT_OPTIONS))
        key = (name, source, *(_stamp(file) for file in files))
        concept = self.concepts.pop(key, None)
        if concept is None:
            concept = load_concept(path, name, source)
        self.concepts[key] = concept
        while len(self.concepts) > 1 and sum(map(count_bytes, self.concepts.values())) > self.max_bytes:
            self.concepts.popitem(last=False)
        return concept


def _stamp(file: Path) -> tuple[object, ...]:
    """Path, time of the last change and size; the path alone if there is no such file."""
    try:
        status = file.stat()
    except OSError:
        return (str(file),)
    return (str(file.absolute()), status.st_mtime_ns, status.st_size, status.st_ino)


def count_bytes(concept: Concept) -> int:
    """Bytes of a concept's tensors."""
    tensors: list[Tensor] = [
        *concept.weights.values(),
        *(vectors for word in concept.tokens.values() for vectors in word.values()),
    ]
    for entry in concept.adapter.values():
        parts: list[WeightRule | LowRank] = [entry] if isinstance(entry, LowRank) else [part for part, _ in entry.parts]
        for part in parts:
            tensors += part.tensors.values() if isinstance(part, WeightRule) else (part.down, part.up)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
