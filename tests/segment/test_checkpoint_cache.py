"""Vision models stay in the CPU's memory and are on the device only in use."""

import torch
from torch import nn

from costars.segment import checkpoint_cache
from costars.segment.checkpoint import Checkpoint
from costars.segment.checkpoint_cache import checkpoint_on_device
from costars.segment.sam import SAM

META = torch.device("meta")


def test_a_model_is_loaded_once_and_is_on_the_device_only_in_use(monkeypatch):
    model, loads, cache = nn.Linear(3, 2), [], {}
    weight = model.weight.detach().clone()

    def load(kind, folder, device, dtype, *, offline):
        loads.append((kind, folder, device.type, dtype))
        return Checkpoint(model, None, None)

    monkeypatch.setattr(checkpoint_cache, "open_checkpoint", load)
    for _ in range(2):
        with checkpoint_on_device(cache, SAM, "sam", META, torch.float16) as checkpoint:
            assert checkpoint.model is model and model.weight.device == META
        assert model.weight.device.type == "cpu" and torch.equal(model.weight, weight)
    assert loads == [(SAM, "sam", "cpu", torch.float16)]
