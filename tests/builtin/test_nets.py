"""The shared convolution block, and weights that cannot be loaded."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from costars.builtin.nets import conv_block, load_weights
from costars.errors import ModelError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("stride", "size"), [(1, 16), (2, 8)])
def test_block_has_the_stride(stride, size):
    assert conv_block(3, 8, stride)(torch.zeros(1, 3, 16, 16)).shape == (1, 8, size, size)


def test_weights_are_loaded_in_float32_and_eval_mode(tmp_path):
    save_file({"weight": torch.ones(2, 3).half(), "bias": torch.ones(2).half()}, tmp_path / "net.safetensors")
    net = load_weights(nn.Linear(3, 2), tmp_path / "net.safetensors", "test", CPU)
    assert not net.training and net.weight.dtype == torch.float32 and net.weight.sum() == 6


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_missing_or_damaged_file_is_rejected(tmp_path, content):
    path = tmp_path / "net.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"test: net\.safetensors cannot be loaded .*; reinstall costars"):
        load_weights(nn.Linear(3, 2), path, "test", CPU)


def test_weights_of_another_network_are_rejected(tmp_path):
    save_file({"other": torch.ones(1)}, tmp_path / "net.safetensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_weights(nn.Linear(3, 2), tmp_path / "net.safetensors", "test", CPU)
