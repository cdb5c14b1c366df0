"""LoRA adapters on a module, one for each row of a batch, removed when the block ends.

Every layer that an adapter changes gets a forward hook that adds up @ down @ x to its output: two batched matrix
products for all rows, so that one call serves rows without an adapter and rows with different ones
(bench/adapters.py compares it with peft's mixed batch). Weights are not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from costars.errors import ConceptError
from costars.model.text_encoder import TextEncoders
from costars.types import Adapter, LowRank


@dataclass
class RowAdapters:
    """Selects the adapter of each row of a call; None is the module without an adapter.

    With broadcast the single row that is set applies to all rows of a call.
    """

    layers: list[_Layer] = field(default_factory=list)
    rows: tuple[str | None, ...] = ()
    active: bool = False
    broadcast: bool = False

    @contextmanager
    def on(self, rows: Sequence[str | None]) -> Iterator[None]:
        """Within the block row i of every call uses the adapter rows[i]; outside, no adapter is used."""
        if tuple(rows) != self.rows:
            self.rows = tuple(rows)
            for layer in self.layers:
                layer.use(self.rows)
        self.active = True
        try:
            yield
        finally:
            self.active = False


class _Layer:
    """The stacked adapters of one layer, indexed for the rows of the next call."""

    def __init__(self, state: RowAdapters, module: nn.Module, entries: Mapping[str, LowRank]) -> None:
        self.state = state
        weight = module.weight
        assert isinstance(weight, Tensor)
        rank = max(len(e.down) for e in entries.values())
        self.names = list(entries)
        self.module = module
        # accelerate's hook has the device of a layer whose weights are moved there only for its call.
        hook: Any = getattr(module, "_hf_hook", None)
        device = hook.execution_device if weight.is_meta else weight.device
        self.down = torch.stack([_pad_rank(e.down, 0, rank) for e in entries.values()]).to(device, weight.dtype)
        self.up = torch.stack([_pad_rank(e.up, 1, rank) for e in entries.values()]).to(device, weight.dtype)
        self.taken: Tensor | None = None

    def use(self, rows: Sequence[str | None]) -> None:
        taken = [i for i, name in enumerate(rows) if name in self.names]
        which = [self.names.index(rows[i]) for i in taken]  # type: ignore[arg-type]
        device = self.down.device
        self.count = len(rows)
        self.taken = torch.tensor(taken, device=device) if taken else None
        self.all = len(taken) == len(rows)
        index = torch.tensor(which, device=device, dtype=torch.long)
        self.row_down, self.row_up = self.down[index], self.up[index]

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.taken is None or not self.state.active:
            return output
        x = inputs[0]
        if len(x) != self.count and not self.state.broadcast:
            raise ValueError(f"adapters are set for {self.count} rows, the call has {len(x)}")
        change = self._change(x if self.all else x[self.taken])
        return output + change if self.all else output.index_add(0, self.taken, change)

    def _change(self, x: Tensor) -> Tensor:
        if isinstance(self.module, nn.Conv2d):
            stride, padding = self.module.stride, self.module.padding
            assert not isinstance(padding, str)
            each = zip(x, self.row_down, self.row_up, strict=True)
            return torch.cat([conv2d(conv2d(r[None], d, None, stride, padding), u) for r, d, u in each])
        flat = x.reshape(len(x), -1, x.shape[-1])
        change = flat @ self.row_down.transpose(1, 2) @ self.row_up.transpose(1, 2)
        return change.reshape(*x.shape[:-1], -1)


def _pad_rank(matrix: Tensor, axis: int, rank: int) -> Tensor:
    missing = rank - matrix.shape[axis]
    if not missing:
        return matrix
    sides = [0, 0] * matrix.ndim
    sides[2 * (matrix.ndim - 1 - axis) + 1] = missing
    return pad(matrix, sides)


@contextmanager
def one_adapter_per_row(module: nn.Module, prefix: str, adapters: Mapping[str, Adapter]) -> Iterator[RowAdapters]:
    """Within the block each row of a call to the module can use its own adapter.

    Entries under the prefix ("unet.") are used; they may change Linear and Conv2d layers. Raises ConceptError for a
    layer that the module does not have, or has with another size.
    """
    modules = dict(module.named_modules())
    state = RowAdapters()
    handles = []
    try:
        for path, entries in group_by_layer(module, prefix, adapters).items():
            layer = _Layer(state, modules[path], entries)
            state.layers.append(layer)
            handles.append(modules[path].register_forward_hook(layer))
        yield state
    finally:
        for handle in handles:
            handle.remove()


def group_by_layer(module: nn.Module, prefix: str, adapters: Mapping[str, Adapter]) -> dict[str, dict[str, LowRank]]:
    """{layer: {adapter: entry}} of the entries under the prefix; raises ConceptError for one that does not fit."""
    by_layer: dict[str, dict[str, LowRank]] = {}
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
    selected: dict[str, LowRank] = {}
    for part, module in modules.items():
        known = dict(module.named_modules())
        for path, entry in adapter.items():
            module_path = _module_path(module, path.removeprefix(f"{part}."))
            if path.startswith(f"{part}.") and isinstance(known.get(module_path), nn.Linear | nn.Conv2d):
                selected[path] = entry
    return selected, [path for path in adapter if path not in selected]


def subtract_base_weights(weights: Mapping[str, Tensor], modules: Mapping[str, nn.Module], source: str) -> Adapter:
    """The differences of full weights {path: (out, in) or (out, in, kh, kw)} to the layers' own, as an exact adapter.

    Raises ConceptError for a layer that is missing or has another size.
    """
    adapter: dict[str, LowRank] = {}
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
        with align_module_device(layer):
            change = weight - layer.weight.detach().to("cpu", torch.float32)
        adapter[path] = _factorize_exactly(change)
    return adapter


def _factorize_exactly(change: Tensor) -> LowRank:
    """An exact factorization: the change times an identity on its shorter side (for kernels, the output side)."""
    rows, columns = change.shape[:2]
    if change.ndim == 4:
        return LowRank(change, torch.eye(rows)[:, :, None, None])
    return LowRank(change, torch.eye(rows)) if columns > rows else LowRank(torch.eye(columns), change)


def _module_path(module: nn.Module, path: str) -> str:
    """transformers 5 removed the text_model level of CLIPTextModel."""
    return path if hasattr(module, "text_model") else path.removeprefix("text_model.")


def _check_fit(path: str, module: nn.Module | None, entries: Mapping[str, LowRank]) -> None:
    for name, entry in entries.items():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise ConceptError(
                f"concept {name!r} changes layer {path!r}, which this model does not have; it was made for another "
                "base model; use a concept for this one, or set model"
            )
        out_size, in_size = module.weight.shape[:2]
        fits = entry.down.shape[1:] == module.weight.shape[1:] and entry.up.shape[0] == out_size
        if not fits or entry.up.ndim != entry.down.ndim:
            raise ConceptError(
                f"concept {name!r}: layer {path!r} is {entry.down.shape[1]} -> {entry.up.shape[0]}, the model's is "
                f"{in_size} -> {out_size}; it was made for another base model; use a concept for this one, or set model"
            )


@contextmanager
def text_adapter(encoders: TextEncoders, adapter: Adapter) -> Iterator[None]:
    """Within the block every text encoder uses the adapter for all prompts."""
    with ExitStack() as stack:
        for encoder in encoders:
            own = one_adapter_per_row(encoder.module, f"{encoder.name}.", {"own": adapter})
            adapters = stack.enter_context(own)
            adapters.broadcast = True
            stack.enter_context(adapters.on(["own"]))
        yield


def scale_adapter(adapter: Adapter, weight: float) -> Adapter:
    """The adapter with its change multiplied by weight."""
    return {path: LowRank(entry.down, entry.up * weight) for path, entry in adapter.items()}


def concatenate_adapters(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter whose change is the sum of all: their ranks are concatenated."""
    out: dict[str, LowRank] = {}
    for path in dict.fromkeys(path for adapter in adapters for path in adapter):
        entries = [adapter[path] for adapter in adapters if path in adapter]
        out[path] = LowRank(torch.cat([e.down for e in entries]), torch.cat([e.up for e in entries], dim=1))
    return out
