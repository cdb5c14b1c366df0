"""Where concepts are found: shipped with costars, in your library, or as a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from costars.concepts.formats import load_concept
from costars.errors import ConceptError, nearest
from costars.types import Concept

BUILTIN = "builtin/"


@dataclass(frozen=True)
class Store:
    """Two folders of .safetensors files: the shipped ones and the library."""

    builtin: Path
    library: Path

    def files(self) -> Iterator[tuple[str, Path]]:
        """Every concept's name, as a scene would write it, with its file."""
        for prefix, folder in ((BUILTIN, self.builtin), ("", self.library)):
            for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
                yield prefix + path.stem, path

    def find(self, concept: str, base: Path | None = None) -> Path:
        """The file of a concept; a relative path is looked up beside the scene file."""
        known = dict(self.files())
        if concept in known:
            return known[concept]
        if concept.endswith(".safetensors"):
            path = Path(concept).expanduser()
            return path if path.is_absolute() or base is None else base / path
        if BUILTIN + concept in known:
            raise ConceptError(f"no concept {concept!r} in your library; the shipped one is {BUILTIN + concept!r}")
        raise ConceptError(
            f"no concept {concept!r}; {nearest(concept, known)}; or give the path of a .safetensors file"
        )

    def load(self, concept: str, base: Path | None = None) -> Concept:
        """Load a concept as a scene names it."""
        path = self.find(concept, base)
        source = concept if "/" not in concept or concept.startswith(BUILTIN) else path.name
        return load_concept(path, path.stem, source)
