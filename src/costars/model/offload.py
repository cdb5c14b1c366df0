"""Memory: where the modules of a checkpoint are kept, and how many rows go through the UNet at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# From the fastest to the smallest: all modules on the device, the module at work, the layer at work.
TIERS = ("full", "offload", "sequential")
# Memory for one step's activations of a few rows, as a share of the weights. Estimated above what diffusers' pipelines
# take; if it is too low, an out-of-memory error lowers the tier by one.
ACTIVATION_SHARE = 0.5
FIRST_ROWS = 2  # the layout's row and the row that borrows its attention must be in one call
FREE_SHARE = 0.8  # usable share of free memory, the rest is lost to fragmentation; estimated


class _Master(NamedTuple):
    """A parameter or buffer in the CPU's memory, and where it belongs."""

    table: dict[str, Any]
    name: str
    tensor: Tensor


@dataclass
class Offload:
    """Keeps the modules of one checkpoint in a memory tier.

    In offload, weights stay in the CPU's memory, pinned for a GPU; the device has a copy while a block is open, which
    is then dropped. Changes of the weights within a block are lost. in_use {id(module): number of open blocks}.
    """

    tier: str
    device: torch.device
    in_use: dict[int, int] = field(default_factory=dict)
    _masters: dict[int, list[_Master]] = field(default_factory=dict, repr=False)

    def place(self, module: nn.Module) -> None:
        """Move a new module to where the tier keeps it."""
        if self.tier == "full":
            module.to(self.device)
        if self.tier == "offload" and self.device.type == "cuda":
            _pin_weights(module)
        if self.tier == "sequential":
            from accelerate import cpu_offload

            cpu_offload(module, execution_device=self.device)

    @contextmanager
    def on_device(self, *modules: nn.Module) -> Iterator[None]:
        """Within the block these modules can compute on the device."""
        moved = modules if self.tier == "offload" else ()
        opened: list[nn.Module] = []
        try:
            for module in moved:
                opened.append(module)
                self._open(module)
            yield
        finally:
            for module in opened:
                self._close(module)

    def _open(self, module: nn.Module) -> None:
        self.in_use[id(module)] = self.in_use.get(id(module), 0) + 1
        if self.in_use[id(module)] == 1:
            masters = self._masters[id(module)] = _list_weights(module)
            _copy_to_device(masters, self.device)

    def _close(self, module: nn.Module) -> None:
        self.in_use[id(module)] -= 1
        if not self.in_use[id(module)]:
            del self.in_use[id(module)]
            for table, name, tensor in self._masters.pop(id(module)):
                table[name] = tensor


def _list_weights(module: nn.Module) -> list[_Master]:
    tables = (table for each in module.modules() for table in (each._parameters, each._buffers))
    return [_Master(table, name, tensor) for table in tables for name, tensor in table.items() if tensor is not None]


def _copy_to_device(masters: list[_Master], device: torch.device) -> None:
    """Put a copy on the device in the place of each weight; weights that are shared stay shared."""
    copies: dict[int, Tensor] = {}
    for table, name, tensor in masters:
        if id(tensor) not in copies:
            moved = tensor.detach().to(device, non_blocking=True)
            is_parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
        table[name] = copies[id(tensor)]


def _pin_weights(module: nn.Module) -> None:
    """Pin the weights in the CPU's memory, from where a GPU copies them several times as fast."""
    with suppress(RuntimeError):  # the system's limit on pinned memory: the others are copied more slowly
        for _, _, tensor in _list_weights(module):
            tensor.data = tensor.data.pin_memory()


@dataclass
class MicroBatcher:
    """Splits the rows of a batch into micro-batches.

    max_rows is the user's limit. If it is 0, it is set from the memory that a call of FIRST_ROWS rows takes, whose
    result is not used. On a CPU a batch is not split.
    """

    max_rows: int
    device: torch.device

    def size(self, rows: int) -> int:
        """Rows in the next micro-batch, of this many left."""
        return min(self.max_rows, rows) if self.max_rows else rows

    def must_measure(self, rows: int) -> bool:
        """Whether `measure` comes before a batch of this many rows."""
        return not self.max_rows and rows > FIRST_ROWS and free_bytes(self.device) is not None

    @contextmanager
    def measure(self, rows: int) -> Iterator[None]:
        """Run a call of this many rows in the block; it sets max_rows."""
        before = _allocated_bytes(self.device)
        yield
        per_row = max(1, _peak_bytes(self.device) - before) // rows
        free = free_bytes(self.device) or 0
        self.max_rows = max(FIRST_ROWS, int(FREE_SHARE * free) // max(1, per_row))


def free_bytes(device: torch.device) -> int | None:
    """Bytes that tensors can still take on a GPU, torch's unused reserve included; None for other devices."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _allocated_bytes(device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device)


def release_memory() -> None:
    """Give back what nothing refers to any more, reference cycles included."""
    gc.collect()
    torch.cuda.empty_cache()


def choose_tier(requested: str, weights: int, device: torch.device) -> str:
    """The requested tier; for auto the first one that fits weights of this many bytes and their activations."""
    if requested != "auto":
        return requested
    free = free_bytes(device)
    return "full" if free is None or free > weights * (1 + ACTIVATION_SHARE) else "offload"


def lower_tier(tier: str) -> str | None:
    """The next smaller tier; None for the last."""
    return None if tier == TIERS[-1] else TIERS[TIERS.index(tier) + 1]


def count_weight_bytes(*modules: nn.Module) -> int:
    """Bytes of all weights."""
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
