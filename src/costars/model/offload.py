"""How much of a checkpoint stays on the device: all of it, the part at work, or the layer at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

# From the fastest to the smallest. auto is the first that the device has room for.
TIERS = ("full", "offload", "sequential")
# Beside the weights: room for one step's activations of a few rows, as a share of the weights. A guess on the
# safe side of what diffusers' own pipelines take; where it is wrong, running out lowers the tier by one.
WORKING_SHARE = 0.5
FIRST_ROWS = 2  # the layout's row and the one that borrows its attention must be in one call
ROOM_SHARE = 0.8  # of what is free; a guess too, for what is cut into pieces cannot all be used


@dataclass
class Residence:
    """Where the modules of one checkpoint live between calls, and who is at work now."""

    tier: str
    device: torch.device
    busy: dict[int, int] = field(default_factory=dict)

    def settle(self, module: nn.Module) -> None:
        """Put the module where it waits for its work; sequential leaves its layers on the CPU for good."""
        if self.tier == "full":
            module.to(self.device)
        if self.tier == "sequential":
            from accelerate import cpu_offload

            cpu_offload(module, execution_device=self.device)

    @contextmanager
    def at_work(self, *modules: nn.Module) -> Iterator[None]:
        """Within the block these modules are on the device; at its end they leave, if they do not stay anyway."""
        moved = modules if self.tier == "offload" else ()
        for module in moved:
            self.busy[id(module)] = self.busy.get(id(module), 0) + 1
            module.to(self.device)
        try:
            yield
        finally:
            for module in moved:
                self.busy[id(module)] -= 1
                if not self.busy[id(module)]:
                    module.to("cpu")


@dataclass
class Portion:
    """How many rows of a batch go through the UNet at once.

    most is what the user set; where that is 0 it is, from the second call on, as many as the device has room
    for by what the FIRST_ROWS took. A CPU counts nothing, and takes all.
    """

    most: int
    device: torch.device

    def size(self, rows: int) -> int:
        """Of so many rows that are left, how many come next."""
        if self.most:
            return min(self.most, rows)
        return rows if free_bytes(self.device) is None else min(FIRST_ROWS, rows)

    @contextmanager
    def measured(self, rows: int) -> Iterator[None]:
        """Within the block so many rows go through the UNet; what they take decides about the next."""
        if self.most or free_bytes(self.device) is None:
            yield
            return
        before = _taken_bytes(self.device)
        yield
        each = max(1, _most_taken_bytes(self.device) - before) // rows
        free = free_bytes(self.device) or 0
        self.most = max(FIRST_ROWS, int(ROOM_SHARE * free) // max(1, each))


def free_bytes(device: torch.device) -> int | None:
    """What tensors may still take on a GPU, those that torch holds unused included; None elsewhere."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _taken_bytes(device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _most_taken_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device)


def chosen_tier(asked: str, weights: int, device: torch.device) -> str:
    """The tier that was asked for; for auto the first that fits weights (in bytes) and their work."""
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "full"
    free, _ = torch.cuda.mem_get_info(device)
    return "full" if free > weights * (1 + WORKING_SHARE) else "offload"


def lower_tier(tier: str) -> str | None:
    """The next smaller tier; None below the last."""
    return None if tier == TIERS[-1] else TIERS[TIERS.index(tier) + 1]


def size_of(*modules: nn.Module) -> int:
    """Bytes of weights."""
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
