"""The concepts that a scene names, loaded together: everything that is wrong with them is said at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from costars.concepts.library import Library
from costars.errors import ConceptError
from costars.types import Concept

T = TypeVar("T")


def load_concepts(names: Mapping[str, str], library: Library) -> dict[str, Concept]:
    """The concept of each field of a scene, such as cast.ana, by {field: name or path}.

    Raises ConceptError with all that are missing or damaged, each with its field and its file.
    """
    return collect_errors(names, lambda field: library.load(names[field]))


def collect_errors(names: Mapping[str, str], load: Callable[[str], T]) -> dict[str, T]:
    """{field: load(field)} for {field: name or path}; raises one ConceptError for all fields that raise one."""
    loaded, problems = {}, []
    for field, name in names.items():
        try:
            loaded[field] = load(field)
        except ConceptError as error:
            is_named = "/" not in name or name in str(error)
            problems.append(f"{field}: {error}" if is_named else f"{field} ({name}): {error}")
    if problems:
        raise ConceptError("; ".join(problems))
    return loaded
