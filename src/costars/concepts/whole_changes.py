"""Whole changes of layers under the keys of costars' own files: changes.<kind>.<role>.<module path>."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from costars.concepts.dialects import CHANGES
from costars.concepts.dtypes import to_float
from costars.errors import ConceptError
from costars.model.weight_rules import RULES
from costars.types import Adapter, FullChange, WeightRule


def to_tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of all whole changes of a file's adapter; each of them has one part of scale 1."""
    tensors: dict[str, Tensor] = {}
    for path, entry in adapter.items():
        for part, scale in entry.parts if isinstance(entry, FullChange) else ():
            assert isinstance(part, WeightRule) and scale == 1, "an adapter as read from a file"
            tensors |= {f"{CHANGES}{part.kind}.{role}.{path}": tensor for role, tensor in part.tensors.items()}
    return tensors


def read_changes(tensors: Mapping[str, Tensor], source: str) -> Adapter:
    """Read whole changes. Raises ConceptError for a kind or a set of roles that RULES does not have."""
    layers: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        kind, role, path = (*key.removeprefix(CHANGES).split(".", 2), "", "")[:3]
        layers.setdefault(path, {}).setdefault(kind, {})[role] = tensor
    adapter = {}
    for path, kinds in layers.items():
        kind, roles = next(iter(kinds.items()))
        rule = RULES.get(kind)
        fits = rule is not None and any(needed <= roles.keys() <= needed | rule.optional for needed in rule.needed)
        if len(kinds) != 1 or not fits or not path:
            raise ConceptError(
                f"{source}: layer {path!r} has the changes {', '.join(kinds)} ({', '.join(roles)}), expected the "
                "tensors of one kind; import it again"
            )
        floats = {role: to_float(tensor) for role, tensor in roles.items()}
        if not all(tensor.isfinite().all() for tensor in floats.values()):
            raise ConceptError(f"{source}: layer {path!r} has non-finite values; import it again")
        adapter[path] = FullChange(((WeightRule(kind, floats), 1.0),))
    return adapter
