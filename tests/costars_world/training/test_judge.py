"""The judge's accuracy and the attributes it is scored on."""

import pytest
import torch

from costars_world.judge.judge import JUDGE_WEIGHTS, load_judge
from costars_world.render.identity import Identity
from costars_world.training.judge import evaluate, is_visible

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def judge():
    return load_judge(JUDGE_WEIGHTS, CPU)


def test_shipped_judge_is_accurate_on_held_out_renders(judge, monkeypatch):
    monkeypatch.setattr("costars_world.training.judge.NUM_DISTRACTORS", 20)
    held_out = evaluate(judge, 40, first_seed=7000)
    assert held_out["class_right"] >= 0.95
    assert held_out["attribute_right"] >= 0.9
    assert held_out["found_first"] >= 0.9


def test_bald_man_without_a_beard_shows_no_hair_colour():
    bald = Identity("man", {"hair_style": "bald", "beard": "none", "hair_colour": "red"})
    assert not is_visible(bald, "hair_colour")
    assert is_visible(bald, "hair_style")
    assert is_visible(Identity("man", {**bald.attributes, "beard": "moustache"}), "hair_colour")
    assert is_visible(Identity("cat", {"fur": "grey"}), "fur")
