"""Everything costars raises on purpose.

CostarsError                 the root; exit code 2 on the command line
├── SceneError               the scene contradicts itself or names what is not there
├── ConceptError             a concept file is missing, damaged or of another model family
├── ModelError               a checkpoint is missing, damaged or of a family costars does not know
├── SettingsError            a setting of this machine has a value that is not allowed
├── TrainError               a concept cannot be taught from what was given, or its teaching went wrong
└── RegionError              the layout does not show the cast; carries the layout and what was found

Each message says what was wrong, the value, what is allowed and what to do next, on one line.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from costars.types import Layout, Region


class CostarsError(Exception):
    """Root of every error that costars raises on purpose."""


class SceneError(CostarsError):
    """The scene contradicts itself or names what is not there."""


class ConceptError(CostarsError):
    """A concept file is missing, damaged or of another model family."""


class ModelError(CostarsError):
    """A checkpoint is missing, damaged or of a family that costars does not know."""


class SettingsError(CostarsError):
    """A setting of this machine has a value that is not allowed."""


class TrainError(CostarsError):
    """A concept cannot be taught from what was given, or its teaching went wrong."""


class RegionError(CostarsError):
    """The layout does not show every member of the cast."""

    def __init__(self, message: str, layout: Layout | None = None, regions: tuple[Region, ...] = ()) -> None:
        super().__init__(message)
        self.layout = layout
        self.regions = regions


def nearest(name: str, known: Iterable[str]) -> str:
    """What is allowed, the near matches first: "did you mean 'ana'? known: ana, bo"."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}known: {', '.join(names) if names else 'none'}"


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory ran out; on a CPU torch raises a RuntimeError as any other."""
    by_kind = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return by_kind or "DefaultCPUAllocator: can't allocate memory" in str(error)
