"""Adapters as values: their layers in a model, their scale, and their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from costars.errors import ConceptError
from costars.model.full_change import CHANGEABLE, check_parts
from costars.model.weight_rules import RuleError
from costars.types import Adapter, Change, FullChange, LowRank, WeightRule


def group_by_layer(module: nn.Module, prefix: str, adapters: Mapping[str, Adapter]) -> dict[str, dict[str, Change]]:
    """{layer: {adapter: entry}} of the entries under the prefix; raises ConceptError for one that does not fit."""
    by_layer: dict[str, dict[str, Change]] = {}
    for name, adapter in adapters.items():
        for path, entry in adapter.items():
            if path.startswith(prefix):
                by_layer.setdefault(_module_path(module, path.removeprefix(prefix)), {})[name] = entry
    modules = dict(module.named_modules())
    for path, entries in by_layer.items():
        _check_fit(path, modules.get(path), entries)
    return by_layer


def select_layers(adapter: Adapter, modules: Mapping[str, nn.Module]) -> tuple[Adapter, list[str]]:
    """Entries of an adapter whose layer is in modules {part: module}, and the paths of all others."""
    selected: dict[str, Change] = {}
    for part, module in modules.items():
        known = dict(module.named_modules())
        for path, entry in adapter.items():
            layer = known.get(_module_path(module, path.removeprefix(f"{part}.")))
            if path.startswith(f"{part}.") and isinstance(layer, _changeable(entry)):
                selected[path] = entry
    return selected, [path for path in adapter if path not in selected]


def subtract_base_weights(weights: Mapping[str, Tensor], modules: Mapping[str, nn.Module], source: str) -> Adapter:
    """The change from the layers' own weights to these {path: (out, in) or (out, in, kh, kw)}.

    It is computed from the layer when the adapter is applied. Raises ConceptError for a layer that is missing or has
    another size.
    """
    adapter: dict[str, Change] = {}
    layers = {part: dict(module.named_modules()) for part, module in modules.items()}
    for path, weight in weights.items():
        part, _, module_path = path.partition(".")
        layer = layers[part].get(_module_path(modules[part], module_path)) if part in modules else None
        size = tuple(layer.weight.shape) if isinstance(layer, nn.Linear | nn.Conv2d) else None
        if layer is None or size != tuple(weight.shape):
            raise ConceptError(
                f"concept {source!r}: its weight {path!r} is {tuple(weight.shape)}, the model's is "
                f"{size or 'missing'}; it was made for another base model; use a concept for this one, or set model"
            )
        adapter[path] = FullChange(((WeightRule("replacement", {"weight": weight}), 1.0),))
    return adapter


def _changeable(entry: Change) -> tuple[type[nn.Module], ...]:
    """The kinds of layers that an entry may change."""
    return (nn.Linear, nn.Conv2d) if isinstance(entry, LowRank) else CHANGEABLE


def _module_path(module: nn.Module, path: str) -> str:
    """transformers 5 removed the text_model level of CLIPTextModel."""
    return path if hasattr(module, "text_model") else path.removeprefix("text_model.")


def _check_fit(path: str, module: nn.Module | None, entries: Mapping[str, Change]) -> None:
    remedy = "it was made for another base model; use a concept for this one, or set model"
    for name, entry in entries.items():
        if module is None or not isinstance(module, _changeable(entry)):
            raise ConceptError(f"concept {name!r} changes layer {path!r}, which this model does not have; {remedy}")
        if isinstance(entry, FullChange):
            try:
                check_parts(entry, module)
            except RuleError as error:
                raise ConceptError(f"concept {name!r}: layer {path!r} {error}; {remedy}") from None
            continue
        weight = module.weight
        assert isinstance(weight, Tensor)
        out_size, in_size = weight.shape[:2]
        fits = entry.down.shape[1:] == weight.shape[1:] and entry.up.shape[0] == out_size
        if not fits or entry.up.ndim != entry.down.ndim:
            raise ConceptError(
                f"concept {name!r}: layer {path!r} is {entry.down.shape[1]} -> {entry.up.shape[0]}, the model's is "
                f"{in_size} -> {out_size}; {remedy}"
            )


def scale_adapter(adapter: Adapter, weight: float) -> Adapter:
    """The adapter with its change multiplied by weight."""
    return {path: _scale(entry, weight) for path, entry in adapter.items()}


def _scale(entry: Change, weight: float) -> Change:
    if isinstance(entry, LowRank):
        return LowRank(entry.down, entry.up * weight)
    return FullChange(tuple((part, scale * weight) for part, scale in entry.parts))


def concatenate_adapters(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter whose change is the sum of all: the ranks of a layer are concatenated, or its whole changes added."""
    out: dict[str, Change] = {}
    for path in dict.fromkeys(path for adapter in adapters for path in adapter):
        entries = [adapter[path] for adapter in adapters if path in adapter]
        low = [entry for entry in entries if isinstance(entry, LowRank)]
        if len(low) == len(entries):
            out[path] = LowRank(torch.cat([e.down for e in low]), torch.cat([e.up for e in low], dim=1))
        else:
            parts = [e.parts if isinstance(e, FullChange) else ((e, 1.0),) for e in entries]
            out[path] = FullChange(tuple(part for group in parts for part in group))
    return out
