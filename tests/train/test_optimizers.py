"""Optimizers by name, and the learning rate schedule."""

import sys

import pytest
import torch

from costars.errors import TrainError
from costars.train.optimizers import lr_factor, make_optimizer


def groups():
    return [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.5}]


def test_optimizer_has_the_recipes_beta_and_keeps_initial_rates(short_recipe):
    optimizer = make_optimizer(groups(), short_recipe("lora", adam_beta2=0.9))
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["betas"] == (0.9, 0.9)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.5]
    assert type(make_optimizer(groups(), short_recipe("lora", optimizer="adafactor"))).__name__ == "Adafactor"


def test_missing_bitsandbytes_is_named(short_recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(TrainError, match="optimizer adamw8bit: needs bitsandbytes; pip install"):
        make_optimizer(groups(), short_recipe("lora", optimizer="adamw8bit"))


def test_learning_rate_warms_up_and_decays_linearly(short_recipe):
    recipe = short_recipe("lora", steps=8, lr_warmup_steps=2, lr_decay_fraction=0.5)
    assert [lr_factor(step, recipe) for step in range(8)] == [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert lr_factor(5, short_recipe("dreambooth")) == 1
