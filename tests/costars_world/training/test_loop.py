"""An interrupted training run ends with the same bits as an uninterrupted one."""

import pytest
import torch
from torch import nn

from costars_world.training import loop

RECIPE = loop.Recipe(steps=12, batch_size=4, learning_rate=0.05, warmup_steps=3, decay_share=0.5, ema_decay=0.9)
CPU = torch.device("cpu")


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def make_options(checkpoint, *, resume=False, recipe=RECIPE, **options) -> loop.RunOptions:
    return loop.RunOptions(recipe=recipe, checkpoint=checkpoint, device=CPU, resume=resume, **options)


def train(module, options, until=None):
    """Train until a step, as if the process ended right after it."""
    run = loop.start(module, options)

    def compute_loss(generator):
        x = torch.randn(options.recipe.batch_size, 3, generator=generator)
        return (module(x).float() - x.sum(dim=1, keepdim=True)).square().mean()

    events = []
    for progress in loop.train(run, options, compute_loss):
        events.append(progress)
        if progress.step == until:
            break
    return run, events


def same(one: loop.Run, other: loop.Run) -> bool:
    return (
        one.step == other.step
        and all(torch.equal(p, other.parameters[k]) for k, p in one.parameters.items())
        and all(torch.equal(v, other.average[k]) for k, v in one.average.items())
    )


@pytest.mark.parametrize("interruptions", [(1,), (4, 9), (11,)])
def test_interrupted_run_equals_an_uninterrupted_one(tmp_path, interruptions):
    whole, whole_events = train(make_module(), make_options(tmp_path / "whole.safetensors"))
    for step in interruptions:
        torch.manual_seed(step)  # other random numbers in between must not matter
        train(make_module(), make_options(tmp_path / "run.safetensors", resume=True, save_every_s=-1), until=step)
    resumed, events = train(make_module(), make_options(tmp_path / "run.safetensors", resume=True))
    assert same(whole, resumed)
    assert [p.step for p in events] == list(range(interruptions[-1] + 1, 13))
    assert events[-1].loss == whole_events[-1].loss


def test_run_stops_after_its_minutes_and_saves(tmp_path):
    run, events = train(make_module(), make_options(tmp_path / "run.safetensors", minutes=0.0))
    assert [p.step for p in events] == [1]
    resumed = loop.start(make_module(), make_options(tmp_path / "run.safetensors", resume=True))
    assert same(run, resumed)
    assert resumed.seconds == run.seconds > 0


def test_without_resume_the_checkpoint_is_ignored(tmp_path):
    options = make_options(tmp_path / "run.safetensors")
    train(make_module(), options)
    assert loop.start(make_module(), options).step == 0


def test_finished_run_takes_no_step_and_yields_once(tmp_path):
    before, _ = train(make_module(), make_options(tmp_path / "run.safetensors"))
    after, events = train(make_module(), make_options(tmp_path / "run.safetensors", resume=True))
    assert same(before, after)
    assert [(p.step, p.total) for p in events] == [(12, 12)]


def test_loss_falls(tmp_path):
    recipe = loop.Recipe(steps=200, batch_size=16, learning_rate=0.03, warmup_steps=5, ema_decay=0.9)
    _, events = train(make_module(), make_options(tmp_path / "run.safetensors", recipe=recipe))
    assert events[-1].loss < 0.5 * events[0].loss


def test_learning_rate_warms_up_and_decays():
    factors = [loop.schedule_factor(step, RECIPE) for step in range(12)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert factors[6:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_frozen_parameters_are_not_trained(tmp_path):
    module = make_module()
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    run, _ = train(module, make_options(tmp_path / "run.safetensors"))
    assert torch.equal(module[0].weight, before)
    assert set(run.parameters) == {"2.weight", "2.bias"}


def test_average_is_copied_into_another_module(tmp_path):
    run, _ = train(make_module(), make_options(tmp_path / "run.safetensors"))
    copy = make_module()
    loop.copy_average(run, copy)
    assert all(torch.equal(p, run.average[name]) for name, p in copy.named_parameters())
    assert not torch.equal(copy[0].weight, run.parameters["0.weight"])
