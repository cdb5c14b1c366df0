"""Memory: where the modules of a checkpoint are kept, and how many rows go through the UNet at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

# From the fastest to the smallest: all modules on the device, the module at work, the layer at work.
TIERS = ("full", "offload", "sequential")
# Memory for one step's activations of a few rows, as a share of the weights. Estimated above what diffusers' pipelines
# take; if it is too low, an out-of-memory error lowers the tier by one.
ACTIVATION_SHARE = 0.5
FIRST_ROWS = 2  # the layout's row and the row that borrows its attention must be in one call
FREE_SHARE = 0.8  # usable share of free memory, the rest is lost to fragmentation; estimated


@dataclass
class Offload:
    """Keeps the modules of one checkpoint in a memory tier; in_use {id(module): number of open blocks}."""

    tier: str
    device: torch.device
    in_use: dict[int, int] = field(default_factory=dict)

    def place(self, module: nn.Module) -> None:
        """Move a new module to where the tier keeps it."""
        if self.tier == "full":
            module.to(self.device)
        if self.tier == "sequential":
            from accelerate import cpu_offload

            cpu_offload(module, execution_device=self.device)

    @contextmanager
    def on_device(self, *modules: nn.Module) -> Iterator[None]:
        """Within the block these modules can compute on the device."""
        moved = modules if self.tier == "offload" else ()
        for module in moved:
            self.in_use[id(module)] = self.in_use.get(id(module), 0) + 1
            module.to(self.device)
        try:
            yield
        finally:
            for module in moved:
                self.in_use[id(module)] -= 1
                if not self.in_use[id(module)]:
                    module.to("cpu")


@dataclass
class MicroBatcher:
    """Splits the rows of a batch into micro-batches.

    max_rows is the user's limit. If it is 0, the first micro-batch has FIRST_ROWS rows, and max_rows is then set from
    the memory that they took. On a CPU a batch is not split.
    """

    max_rows: int
    device: torch.device

    def size(self, rows: int) -> int:
        """Rows in the next micro-batch, of this many left."""
        if self.max_rows:
            return min(self.max_rows, rows)
        return rows if free_bytes(self.device) is None else min(FIRST_ROWS, rows)

    @contextmanager
    def measure(self, rows: int) -> Iterator[None]:
        """Run a micro-batch of this many rows in the block; the first one sets max_rows if the user did not."""
        if self.max_rows or free_bytes(self.device) is None:
            yield
            return
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


def choose_tier(requested: str, weights: int, device: torch.device) -> str:
    """The requested tier; for auto the first one that fits weights of this many bytes and their activations."""
    if requested != "auto":
        return requested
    if device.type != "cuda":
        return "full"
    free, _ = torch.cuda.mem_get_info(device)
    return "full" if free > weights * (1 + ACTIVATION_SHARE) else "offload"


def lower_tier(tier: str) -> str | None:
    """The next smaller tier; None for the last."""
    return None if tier == TIERS[-1] else TIERS[TIERS.index(tier) + 1]


def count_weight_bytes(*modules: nn.Module) -> int:
    """Bytes of all weights."""
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
