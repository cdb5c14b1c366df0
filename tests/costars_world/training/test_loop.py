"""The training loop: a run that was interrupted ends as an unbroken one would, bit for bit."""

import json

import pytest
import torch
from torch import nn

from costars_world.training import loop
from costars_world.training.export import write_card

RECIPE = loop.Recipe(steps=12, batch=4, learning_rate=0.05, warmup_steps=3, decay_share=0.5, ema_decay=0.9)
CPU = torch.device("cpu")


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def piece(module, checkpoint, *, resume, until=None, minutes=1.0, recipe=RECIPE, **options):
    """Train until a step, as if the process ended right after it."""
    run = loop.start(module, recipe, checkpoint, resume)

    def loss_of(generator):
        x = torch.randn(recipe.batch, 3, generator=generator)
        return (module(x).float() - x.sum(dim=1, keepdim=True)).square().mean()

    told = []
    for progress in loop.train(run, recipe, loss_of, device=CPU, checkpoint=checkpoint, minutes=minutes, **options):
        told.append(progress)
        if progress.step == until:
            break
    return run, told


def same(one: loop.Run, other: loop.Run) -> bool:
    return (
        one.step == other.step
        and all(torch.equal(p, other.parameters[k]) for k, p in one.parameters.items())
        and all(torch.equal(v, other.average[k]) for k, v in one.average.items())
    )


@pytest.mark.parametrize("broken_at", [(1,), (4, 9), (11,)])
def test_an_interrupted_run_equals_an_unbroken_one_bit_for_bit(tmp_path, broken_at):
    whole, whole_told = piece(toy(), tmp_path / "whole.safetensors", resume=False)
    for step in broken_at:
        torch.manual_seed(step)  # what else was drawn in between must not matter
        piece(toy(), tmp_path / "pieces.safetensors", resume=True, until=step, save_every_s=-1)
    pieces, told = piece(toy(), tmp_path / "pieces.safetensors", resume=True)
    assert same(whole, pieces)
    assert [p.step for p in told] == list(range(broken_at[-1] + 1, 13))
    assert told[-1].loss == whole_told[-1].loss


def test_a_piece_ends_after_its_minutes_and_saves(tmp_path):
    run, told = piece(toy(), tmp_path / "run.safetensors", resume=False, minutes=0.0)
    assert [p.step for p in told] == [1]
    resumed = loop.start(toy(), RECIPE, tmp_path / "run.safetensors", resume=True)
    assert same(run, resumed)
    assert resumed.seconds == run.seconds > 0


def test_without_resume_a_run_starts_anew(tmp_path):
    piece(toy(), tmp_path / "run.safetensors", resume=False)
    assert loop.start(toy(), RECIPE, tmp_path / "run.safetensors", resume=False).step == 0


def test_a_finished_run_takes_no_step_and_says_so_once(tmp_path):
    before, _ = piece(toy(), tmp_path / "run.safetensors", resume=False)
    after, told = piece(toy(), tmp_path / "run.safetensors", resume=True)
    assert same(before, after)
    assert [(p.step, p.of) for p in told] == [(12, 12)]


def test_it_learns(tmp_path):
    recipe = loop.Recipe(steps=200, batch=16, learning_rate=0.03, warmup_steps=5, ema_decay=0.9)
    _, told = piece(toy(), tmp_path / "run.safetensors", resume=False, recipe=recipe)
    assert told[-1].loss < 0.5 * told[0].loss


def test_the_rate_warms_up_and_falls_to_nearly_nothing():
    rates = [loop._rate(step, RECIPE) for step in range(12)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rates[6:] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_what_is_frozen_is_not_trained(tmp_path):
    module = toy()
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    run, _ = piece(module, tmp_path / "run.safetensors", resume=False)
    assert torch.equal(module[0].weight, before)
    assert set(run.parameters) == {"2.weight", "2.bias"}


def test_the_mean_of_the_weights_is_what_a_copy_receives(tmp_path):
    run, _ = piece(toy(), tmp_path / "run.safetensors", resume=False)
    copy = toy()
    loop.put_average(run, copy)
    assert all(torch.equal(p, run.average[name]) for name, p in copy.named_parameters())
    assert not torch.equal(copy[0].weight, run.parameters["0.weight"])


def test_the_card_says_how_it_was_made(tmp_path):
    run, _ = piece(toy(), tmp_path / "run.safetensors", resume=False)
    write_card(tmp_path / "card.json", RECIPE, run, CPU, held_out=0.9)
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["steps"], card["device"], card["recipe"]["batch"], card["held_out"]) == (12, "cpu", 4, 0.9)
    assert card["seconds"] >= 0 and card["loss"] > 0
