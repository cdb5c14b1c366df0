"""The exceptions of costars.

CostarsError                 base class; exit code 2 on the command line
├── SceneError               the scene is inconsistent or names something that does not exist
├── ConceptError             a concept file is missing, damaged, or made for another model family
├── ModelError               a checkpoint is missing, damaged, or of an unsupported family
├── SettingsError            a machine setting has an invalid value
├── TrainError               a training run cannot start with its data and settings, or failed
├── ReadError                a file cannot be read, or is not what its name says
└── RegionError              the layout does not show the cast; carries the layout and what was found

Each message is one line: what is wrong, the value, what is allowed and what to do next. RegionError is in types.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


class CostarsError(Exception):
    """Base class of all errors of costars."""


class SceneError(CostarsError):
    """The scene is inconsistent or names something that does not exist."""


class ConceptError(CostarsError):
    """A concept file is missing, damaged, or made for another model family."""


class ModelError(CostarsError):
    """A checkpoint is missing, damaged, or of an unsupported family."""


class SettingsError(CostarsError):
    """A machine setting has an invalid value."""


class TrainError(CostarsError):
    """A training run cannot start with its data and settings, or failed."""


class ReadError(CostarsError):
    """A file cannot be read, or is not what its name says: which one (origin), why (reason), and what to do (remedy).

    Readers raise it; callers that know what the file was wanted for raise their own error with its reason.
    """

    def __init__(self, origin: object, reason: str, remedy: str = "check the path") -> None:
        super().__init__(f"{origin}: {reason}; {remedy}")
        self.origin, self.reason, self.remedy = str(origin), reason, remedy


def to_one_line(error: object, most: int = 200) -> str:
    """A library's error as one line of at most this many characters; its type if it says nothing."""
    return " ".join(str(error).split())[:most] or type(error).__name__


MOST_NAMES = 40  # known names that a message lists


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: "did you mean 'ana'? known: ana, bo"."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{hint}known: {', '.join(names[:MOST_NAMES]) if names else 'none'}{more}"


# What torch and its libraries write where memory ran out and the exception's type does not say so: c10's allocators,
# CUDA and its libraries, ROCm, oneDNN ("a primitive descriptor" is another error), and the operating system.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|[Cc]annot allocate memory|out of memory"
    r"|cudaErrorMemoryAllocation|hipErrorOutOfMemory|STATUS_ALLOC_FAILED"
    r"|could not create a (?:primitive|memory)(?! desc)"
)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or the one that caused it, means that memory of the device or of the computer ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if not isinstance(error, CostarsError) and _OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False
