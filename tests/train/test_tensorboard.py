"""Loss curves for TensorBoard."""

import sys

import pytest

from costars.errors import TrainError
from costars.train.tensorboard import open_loss_writer


def test_losses_are_readable_by_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write = open_loss_writer(tmp_path)
    write(1, 0.5)
    write(2, 0.25)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainError, match="--tensorboard: needs the tensorboard package; pip install"):
        open_loss_writer(tmp_path)
