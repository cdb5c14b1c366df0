"""Adapters on a module, one for each row of a batch, removed when the block ends.

Every layer that an adapter changes gets a forward hook that adds up @ down @ x to its output: two matrix products for
each run of rows that share a slice of the stacked adapters, the second one added in place. Rows of one adapter should
be neighbours, so that the runs are few. One call serves rows without an adapter and rows with different ones
(bench/adapters.py compares it with peft's mixed batch). Weights are not changed. A change of a whole weight has a hook
of its own (full_change).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad
from torch.utils.hooks import RemovableHandle

from costars.model.adapters import group_by_layer
from costars.model.full_change import FullLayer
from costars.model.text_encoder import TextEncoders
from costars.types import Adapter, FullChange, LowRank

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

    def runs(self, x: Tensor, names: tuple[str, ...]) -> Sequence[RowRun]:
        """The runs of rows of a call with input x that use one of these adapters; see group_rows."""
        if not self.active:
            return ()
        rows = self.rows * len(x) if self.broadcast else self.rows
        runs = group_rows(rows, names)
        if runs and len(x) != len(rows):
            raise ValueError(f"adapters are set for {len(rows)} rows, the call has {len(x)}")
        return runs


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
        factors = [_balance(e) if weight.dtype is torch.float16 else e for e in entries.values()]
        self.down = torch.stack([_pad_rank(e.down, 0, rank) for e in factors]).to(device, weight.dtype)
        self.up = torch.stack([_pad_rank(e.up, 1, rank) for e in factors]).to(device, weight.dtype)
        self.projection: _DownProjection | None = None
        self.part = 0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        runs = self.state.runs(x, self.names)
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


def _balance(entry: LowRank) -> LowRank:
    """The same change with factors of similar size in every rank, so that neither leaves the range of float16.

    The factors are multiplied by powers of two: their product is exact.
    """
    rank = len(entry.down)
    sizes = entry.down.reshape(rank, -1).abs().amax(1), entry.up.reshape(len(entry.up), rank, -1).abs().amax((0, 2))
    ratio = torch.where(sizes[1] > 0, sizes[0] / sizes[1], 1.0)
    shift = torch.where(ratio > 0, ratio, 1.0).log2().div(2).round().exp2()
    axes = (slice(None), *[None] * (entry.down.ndim - 1))
    return LowRank(entry.down / shift[axes], entry.up * shift[axes].transpose(0, 1))


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

    Entries under the prefix ("unet.") are used; they may change linear layers and convolutions, and whole changes also
    norms. Raises ConceptError for a layer that the module does not have, or has with another size.
    """
    modules = dict(module.named_modules())
    state = RowAdapters()
    layers: dict[str, tuple[nn.Module, _Layer]] = {}
    whole: list[tuple[nn.Module, FullLayer]] = []
    handles: list[RemovableHandle] = []
    try:
        for path, entries in group_by_layer(module, prefix, adapters).items():
            low = {name: entry for name, entry in entries.items() if isinstance(entry, LowRank)}
            full = {name: entry for name, entry in entries.items() if isinstance(entry, FullChange)}
            if low:
                layers[path] = modules[path], _Layer(state, modules[path], low)
            if full:
                whole.append((modules[path], FullLayer(state, modules[path], full)))
        state.projections = _share_projections(layers)
        handles += [adapted.register_forward_hook(layer) for adapted, layer in layers.values()]
        handles += [adapted.register_forward_hook(layer) for adapted, layer in whole]
        yield state
    finally:
        for handle in handles:
            handle.remove()
        for _, layer in layers.values():
            layer.clear()
        for _, changes in whole:
            changes.clear()
        state.projections = []


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
