"""Lines of progress at intervals, without waiting for the GPU at every step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from costars_world.world2.training.context import Context

EVERY_S = 10.0


class Printer:
    """Prints step and loss of a process now and then."""

    def __init__(self, context: Context, name: str) -> None:
        self.context, self.name, self.last = context, name, time.monotonic()

    def __call__(self, step: int, loss: Tensor) -> None:
        """After each step; reads the loss from the device only when it prints."""
        if time.monotonic() - self.last >= EVERY_S:
            self.context.log(self.name, f"step {step}, loss {float(loss.detach()):.4f}")
            self.last = time.monotonic()
