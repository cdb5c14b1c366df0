"""Where concepts are found: shipped with costars, in your library, in other folders, or as a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from costars.concepts.load import load_concept
from costars.errors import ConceptError, nearest
from costars.types import Concept

BUILTIN, PATTERN = "builtin/", "*.safetensors"


@dataclass(frozen=True)
class Store:
    """Folders of .safetensors files: the shipped ones, the library, and others that are only read.

    The shipped ones are called builtin/NAME, all others NAME. The others are looked through with the folders
    in them. Of one name in several folders the library's is meant, then that of the first of the others, what
    lies higher up going first; `hidden` tells of the rest.
    """

    builtin: Path
    library: Path
    extra: Sequence[Path] = ()

    def files(self) -> Iterator[tuple[str, Path]]:
        """Every concept's name, as a scene would write it, with its file."""
        seen = set[str]()
        for name, path in self._all():
            if name not in seen:
                seen.add(name)
                yield name, path

    def hidden(self) -> Iterator[tuple[str, Path, Path]]:
        """(name, file, the file that the name means) of every file that another of its name hides."""
        meant = dict(self.files())
        for name, path in self._all():
            if meant[name] != path:
                yield name, path, meant[name]

    def _all(self) -> Iterator[tuple[str, Path]]:
        for prefix, folder in ((BUILTIN, self.builtin), ("", self.library)):
            yield from ((prefix + path.stem, path) for path in _files(folder.glob(PATTERN)))
        for folder in self.extra:
            yield from ((path.stem, path) for path in _files(folder.rglob(PATTERN)))

    def find(self, concept: str, base: Path | None = None) -> Path:
        """The file of a concept; a relative path is looked up beside the scene file.

        Raises ConceptError if there is none, or if a name leads out of its folder.
        """
        known = dict(self.files())
        if concept in known:
            return known[concept] if concept.startswith(BUILTIN) else contained(known[concept])
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

    def remove(self, name: str) -> Path:
        """Delete a concept of the library; raises ConceptError for a name that is not in it."""
        path = self.library / f"{name}.safetensors"
        mine = {stem: file for stem, file in self.files() if file.parent == self.library}
        if name in mine:
            mine[name].unlink()
            return path
        known = dict(self.files())
        if name.startswith(BUILTIN) and name in known:
            raise ConceptError(f"{name!r} is shipped with costars and cannot be removed; no scene has to cast it")
        if name in known:
            raise ConceptError(f"{name!r} is in {known[name].parent}, which costars only reads; delete the file there")
        raise ConceptError(f"no concept {name!r} in your library; {nearest(name, mine)}")


def _files(found: Iterable[Path]) -> list[Path]:
    """Those nearest to the top first; macOS leaves ._NAME beside NAME."""
    return sorted((path for path in found if not path.name.startswith(".")), key=lambda path: (len(path.parts), path))


def contained(path: Path) -> Path:
    """The path, unless it is a link that leads out of its folder: then ConceptError."""
    try:
        inside = path.resolve().is_relative_to(path.parent.resolve())
    except (OSError, RuntimeError):  # links in a circle
        inside = False
    if not inside:
        raise ConceptError(
            f"{path.name} is a link that leads out of its folder; import the file itself, or name the folder "
            "that it is in with COSTARS_CONCEPT_FOLDERS"
        )
    return path
