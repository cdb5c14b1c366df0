"""Rejects kinds of files that are known and not supported, each by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from costars.concepts.keys import read_key
from costars.concepts.tensor_kinds import TENSOR_KINDS, Unsupported
from costars.errors import ConceptError

_PATTERNS = {
    kind: re.compile("|".join(translate(pattern) for pattern, k in TENSOR_KINDS.items() if k == kind))
    for kind in TENSOR_KINDS.values()
    if isinstance(kind, Unsupported)
}


def check_supported(keys: Iterable[str], source: str) -> None:
    """Raise ConceptError if a key shows that the file is of an unsupported kind."""
    key_list = list(keys)
    for kind, pattern in _PATTERNS.items():
        matching = (k for k in key_list if pattern.match(k))
        key = next((k for k in matching if not (kind.unless_read and read_key(k))), None)
        if key is not None:
            raise ConceptError(f"{source}: is {kind.what} ({key!r}), which is not supported; {kind.remedy}")
