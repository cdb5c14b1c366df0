from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from costars_world.world2.training.optimizer import FlatTraining, Rates

RATES = Rates(learning_rate=1e-2, warmup_steps=1, decay_share=0.5, clip_norm=1e9, ema_decay=0.5)


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))


def _loss(module: nn.Module) -> torch.Tensor:
    x = torch.linspace(-1, 1, 20).view(4, 5)
    return module(x).square().mean()


def test_steps_equal_those_of_adamw_on_the_module_itself():
    module = _module()
    other = copy.deepcopy(module)
    training = FlatTraining(module, RATES, torch.float32)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, betas=RATES.betas, weight_decay=RATES.weight_decay)
    for _ in range(4):
        _loss(module).backward()
        training.step(0.0)
        _loss(other).backward()
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_low_precision_weights_follow_a_float32_copy():
    module = _module()
    training = FlatTraining(module, RATES, torch.bfloat16)
    module(torch.ones(2, 5, dtype=torch.bfloat16)).float().mean().backward()
    training.step(0.0)
    assert next(module.parameters()).dtype == torch.bfloat16
    assert training.master.dtype == torch.float32
    target = _module()
    training.put(target, average=False)
    assert torch.allclose(target[0].weight, module[0].weight.float(), atol=1e-2)


def test_a_gradient_that_is_not_finite_changes_nothing():
    module = _module()
    training = FlatTraining(module, Rates(learning_rate=1e-2, weight_decay=0.0), torch.float32)
    before = training.master.detach().clone()
    (_loss(module) * float("nan")).backward()
    training.step(0.0)
    assert torch.equal(training.master, before)


def test_the_rate_reaches_zero_with_the_time():
    assert RATES.factor(100, 0.2) == 1.0
    assert RATES.factor(100, 0.75) == pytest.approx(0.5)
    assert RATES.factor(100, 1.0) == 0.0


def test_a_state_continues_the_same_steps():
    first, second = _module(), _module()
    training = FlatTraining(first, RATES, torch.float32)
    for _ in range(3):
        _loss(first).backward()
        training.step(0.0)
    other = FlatTraining(second, RATES, torch.float32)
    other.load(training.state())
    assert torch.equal(other.master, training.master)
    _loss(second).backward()
    other.step(0.0)
    assert torch.isfinite(other.master).all()
