"""LoRA adapters on a module, one for each row of a batch, removed when the block ends.

Every layer that an adapter changes gets a forward hook that adds up @ down @ x to its output: two matrix products for
each run of rows that share a slice of the stacked adapters, the second one added in place. Rows of one adapter should
be neighbours, so that the runs are few. One call serves rows without an adapter and rows with different ones
(bench/adapters.py compares it with peft's mixed batch). Weights are not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad
from torch.utils.hooks import RemovableHandle

from costars.errors import ConceptError
from costars.model.text_encoder import TextEncoders
from costars.types import Adapter, LowRank

# Layers of one attention module that may read the same input.
QUERY_KEY_VALUE = {"to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj"}


@dataclass
class RowAdapters:
    """Selects the adapter of each row of a call; None is the module without an adapter.

    With broadcast the single row that is set applies to all rows of a call.
    """

    rows: tuple[str | None, ...] = ()
    active: bool = False
    broadcast: bool = False
    projections: list[_DownProjection] = field(default_factory=list)

    @contextmanager
    def on(self, rows: Sequence[str | None]) -> Iterator[None]:
        """Within the block row i of every call uses the adapter rows[i]; outside, no adapter is used."""
        self.rows, self.active = tuple(rows), True
        try:
            yield
        finally:
            self.active = False
            for projection in self.projections:
                projection.clear()


class RowRun(NamedTuple):
    """Rows start to stop of a call, which use the adapters first to last of a stack, equally many rows each."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def rows_per_adapter(self) -> int:
        """Rows of one adapter."""
        return (self.stop - self.start) // (self.last - self.first)


@lru_cache(maxsize=1024)
def group_rows(rows: tuple[str | None, ...], names: tuple[str, ...]) -> tuple[RowRun, ...]:
    """The rows that use one of these adapters, in as few runs as possible; names are in the order of the stack."""
    runs: list[RowRun] = []
    stop = 0
    for name, group in groupby(rows):
        start, stop = stop, stop + len(list(group))
        if name not in names:
            continue
        i = names.index(name)
        if runs and (runs[-1].stop, runs[-1].last, runs[-1].rows_per_adapter) == (start, i, stop - start):
            runs[-1] = runs[-1]._replace(stop=stop, last=i + 1)
        else:
            runs.append(RowRun(start, stop, i, i + 1))
    return tuple(runs)


class _DownProjection:
    """The down matrices of linear layers that may read the same input; the first one called computes all products.

    down is (adapters, sum of ranks, in). The hooks of layers refer to it, it refers to no layer.
    """

    def __init__(self, downs: Sequence[Tensor]) -> None:
        """Stack downs, (adapters, rank, in) for each layer."""
        self.down = torch.cat(list(downs), dim=1)
        stops = list(accumulate(down.shape[1] for down in downs))
        self.parts = [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
        self.clear()

    def clear(self) -> None:
        """Release the last input and its products."""
        self.input: Tensor | None = None
        self.products: list[Tensor] = []
        self.uses_left = 0

    def project(self, x: Tensor, runs: Sequence[RowRun], part: int) -> list[Tensor]:
        """One layer's product for each run of rows, (adapters, tokens, rank) each."""
        if self.input is not x:
            self.input, self.uses_left = x, len(self.parts)
            self.products = [self._multiply(x, run) for run in runs]
        own, self.uses_left = [product[:, :, self.parts[part]] for product in self.products], self.uses_left - 1
        if not self.uses_left:
            self.clear()
        return own

    def _multiply(self, x: Tensor, run: RowRun) -> Tensor:
        rows = x[run.start : run.stop].reshape(run.last - run.first, -1, x.shape[-1])
        return rows @ self.down[run.first : run.last].transpose(1, 2)


class _Layer:
    """The stacked adapters of one layer: up (adapters, out, rank), and down of a convolution.

    A linear layer's down matrices are a part of a projection that several layers share.
    """

    def __init__(self, state: RowAdapters, module: nn.Module, entries: Mapping[str, LowRank]) -> None:
        self.state = state
        weight = module.weight
        assert isinstance(weight, Tensor)
        rank = max(len(e.down) for e in entries.values())
        self.names = tuple(entries)
        # accelerate's hook has the device of a layer whose weights are moved there only for its call.
        hook: Any = getattr(module, "_hf_hook", None)
        device = hook.execution_device if hook is not None and weight.is_meta else weight.device
        self.down = torch.stack([_pad_rank(e.down, 0, rank) for e in entries.values()]).to(device, weight.dtype)
        self.up = torch.stack([_pad_rank(e.up, 1, rank) for e in entries.values()]).to(device, weight.dtype)
        self.projection: _DownProjection | None = None
        self.part = 0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not self.state.active:
            return output
        x, rows = inputs[0], self.state.rows
        if self.state.broadcast:
            rows = rows * len(x)
        runs = group_rows(rows, self.names)
        if runs and len(x) != len(rows):
            raise ValueError(f"adapters are set for {len(rows)} rows, the call has {len(x)}")
        if runs and self.projection is not None:
            for run, low in zip(runs, self.projection.project(x, runs, self.part), strict=True):
                own = output[run.start : run.stop].view(run.last - run.first, -1, output.shape[-1])
                own.baddbmm_(low, self.up[run.first : run.last].transpose(1, 2).to(low.dtype))
        elif runs:
            self._convolve(module, x, output, runs)
        return output

    def _convolve(self, module: nn.Module, x: Tensor, output: Tensor, runs: Sequence[RowRun]) -> None:
        assert isinstance(module, nn.Conv2d) and not isinstance(module.padding, str)
        for run in runs:
            for i in range(run.first, run.last):
                start = run.start + (i - run.first) * run.rows_per_adapter
                rows = slice(start, start + run.rows_per_adapter)
                low = conv2d(x[rows], self.down[i], None, module.stride, module.padding)
                output[rows] += conv2d(low, self.up[i])

    def clear(self) -> None:
        """Release the adapters, also where a traceback still refers to this layer."""
        self.projection = None
        self.down = self.up = torch.empty(0)


def _share_projections(layers: Mapping[str, tuple[nn.Module, _Layer]]) -> list[_DownProjection]:
    """Give every linear layer its down projection; query, key and value of one input width share one."""
    groups: dict[tuple[object, ...], list[_Layer]] = {}
    for path, (module, layer) in layers.items():
        if isinstance(module, nn.Linear):
            parent, _, name = path.rpartition(".")
            place = parent if name in QUERY_KEY_VALUE else path
            groups.setdefault((place, layer.down.shape[-1], layer.names), []).append(layer)
    projections = []
    for group in groups.values():
        projections.append(projection := _DownProjection([layer.down for layer in group]))
        for part, layer in enumerate(group):
            layer.projection, layer.part = projection, part
            layer.down = projection.down  # contains its own, which is then stored once
    return projections


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
    layers: dict[str, tuple[nn.Module, _Layer]] = {}
    handles: list[RemovableHandle] = []
    try:
        for path, entries in group_by_layer(module, prefix, adapters).items():
            layers[path] = modules[path], _Layer(state, modules[path], entries)
        state.projections = _share_projections(layers)
        handles += [adapted.register_forward_hook(layer) for adapted, layer in layers.values()]
        yield state
    finally:
        for handle in handles:
            handle.remove()
        for _, layer in layers.values():
            layer.clear()
        state.projections = []


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
