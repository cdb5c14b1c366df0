"""Checkpoint files and the state of optimizers."""

import pytest
import torch

from costars.errors import TrainError
from costars.train.checkpoint import collect_state, load_checkpoint, load_state, save_checkpoint


def make_parameters(name):
    return {name: torch.nn.Parameter(torch.ones(2))}


def test_state_round_trips_through_a_file(tmp_path):
    parameters = make_parameters("up")
    optimizer = torch.optim.AdamW(parameters.values())
    parameters["up"].grad = torch.ones(2)
    optimizer.step()
    save_checkpoint(tmp_path / "c.safetensors", collect_state(parameters, optimizer), {"step": "1"})
    others = make_parameters("up")
    restored = torch.optim.AdamW(others.values())
    tensors, metadata = load_checkpoint(tmp_path / "c.safetensors")
    load_state(tensors, others, restored)
    assert metadata == {"step": "1"} and torch.equal(others["up"], parameters["up"])
    state, expected = restored.state[others["up"]], optimizer.state[parameters["up"]]
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)


def test_state_of_other_parameters_is_rejected_and_changes_nothing():
    mine, others = make_parameters("up"), make_parameters("down")
    optimizer = torch.optim.AdamW(mine.values())
    state = collect_state({"down": others["down"] * 0}, torch.optim.AdamW(others.values()))
    with pytest.raises(TrainError, match="the checkpoint has other layers or words; start again"):
        load_state(state, mine, optimizer)
    assert mine["up"].tolist() == [1, 1]


def test_damaged_file_is_rejected(tmp_path):
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"damaged")
    with pytest.raises(TrainError, match=r"c.safetensors: not a readable checkpoint \(.*\); delete it and start again"):
        load_checkpoint(path)
