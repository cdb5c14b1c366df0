"""Finds concepts: shipped with costars, in the user's library, in other folders, or as a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from costars.concepts.cache import ConceptCache
from costars.errors import ConceptError, nearest
from costars.files.regular_file import expand_user
from costars.files.temporary import PREFIX
from costars.types import Concept

BUILTIN, SUFFIX = "builtin/", ".safetensors"


@dataclass(frozen=True)
class Library:
    """Folders of .safetensors files: shipped with costars, the user's own, and others that are only read.

    Shipped concepts are named builtin/NAME, all others NAME. The other folders are searched recursively. If several
    folders have the same name, the user's folder comes first, then the others in order, with files nearer to the
    top first; `hidden_files` lists the rest.
    """

    builtin_folder: Path
    user_folder: Path
    extra_folders: Sequence[Path] = ()
    cache: ConceptCache = field(default_factory=ConceptCache, compare=False, repr=False)

    def files(self) -> Iterator[tuple[str, Path]]:
        """(name as a scene writes it, file) of every concept."""
        seen = set[str]()
        for name, path in self._all_files():
            if name not in seen:
                seen.add(name)
                yield name, path

    def hidden_files(self) -> Iterator[tuple[str, Path, Path]]:
        """(name, file, file that is used instead) of every file hidden by another with the same name."""
        used = dict(self.files())
        for name, path in self._all_files():
            if used[name] != path:
                yield name, path, used[name]

    def _all_files(self) -> Iterator[tuple[str, Path]]:
        for prefix, folder in ((BUILTIN, self.builtin_folder), ("", self.user_folder)):
            yield from ((prefix + path.stem, path) for path in _list_files(folder))
        for folder in self.extra_folders:
            yield from ((path.stem, path) for path in _list_files(folder, recursive=True))

    def find(self, concept: str) -> Path:
        """Find the file of a concept, given its name or the path of a .safetensors file.

        Raises ConceptError if there is none, or if the file is a link out of its folder.
        """
        known = dict(self.files())
        if concept in known:
            return known[concept] if concept.startswith(BUILTIN) else check_link(known[concept])
        if concept.endswith(".safetensors"):
            return expand_user(concept)
        if BUILTIN + concept in known:
            raise ConceptError(f"no concept {concept!r} in your library; the shipped one is {BUILTIN + concept!r}")
        raise ConceptError(
            f"no concept {concept!r}; {nearest(concept, known)}; or give the path of a .safetensors file"
        )

    def load(self, concept: str) -> Concept:
        """Load a concept, given its name or the path of a .safetensors file. Raises ConceptError; see find."""
        path = self.find(concept)
        source = concept if "/" not in concept or concept.startswith(BUILTIN) else path.name
        return self.cache.load(path, path.stem, source)

    def remove(self, name: str) -> Path:
        """Delete a concept from the user's folder and return its path. Raises ConceptError if it is not there."""
        path = self.user_folder / f"{name}.safetensors"
        own = {stem: file for stem, file in self.files() if file.parent == self.user_folder}
        if name in own:
            own[name].unlink()
            return path
        known = dict(self.files())
        if name.startswith(BUILTIN) and name in known:
            raise ConceptError(f"{name!r} is shipped with costars and cannot be removed; leave it out of your scenes")
        if name in known:
            raise ConceptError(f"{name!r} is in {known[name].parent}, which costars only reads; delete the file there")
        raise ConceptError(f"no concept {name!r} in your library; {nearest(name, own)}")


def _list_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The concept files of a folder by depth, then by path, without the files ._NAME that macOS adds.

    A folder that does not exist is empty, and temporary folders of a write are left out. Raises ConceptError for one
    that cannot be read: its concepts are not gone.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise ConceptError(
                f"{error.filename or folder}: the folder of concepts cannot be read ({error.strerror}); "
                "correct its permissions, or COSTARS_LIBRARY or COSTARS_CONCEPT_FOLDERS"
            )

    paths: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if recursive and not name.startswith(PREFIX)]
        paths += [Path(place) / name for name in names if name.endswith(SUFFIX) and not name.startswith(".")]
    return sorted(paths, key=lambda path: (len(path.parts), path))


def check_link(path: Path) -> Path:
    """Return the path. Raises ConceptError if it is a link to a file outside its folder."""
    try:
        inside = path.resolve().is_relative_to(path.parent.resolve())
    except (OSError, RuntimeError):  # circular links
        inside = False
    if not inside:
        raise ConceptError(
            f"{path.name} is a link that leads out of its folder; import the file itself, or add the folder it is in "
            "to COSTARS_CONCEPT_FOLDERS"
        )
    return path
