"""Loss curves for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from costars.errors import TrainError

LossWriter = Callable[[int, float], None]  # (step, loss)


def open_loss_writer(folder: Path) -> LossWriter:
    """A function that writes the loss of a step into folder. Raises TrainError without the tensorboard package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainError("--tensorboard: needs the tensorboard package; pip install 'costars[train]'") from None
    writer = SummaryWriter(str(folder))

    def write(step: int, loss: float) -> None:
        writer.add_scalar("loss", loss, step)
        writer.flush()

    return write
