"""python -m costars_world.benchmarks.recipes: concepts are trained, rendered and scored once."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from costars.train.recipes import BUILTIN, RECIPES
from costars_world.benchmarks import recipes
from costars_world.render.identity import CLASSES
from costars_world.training.concepts import PACK


def test_recipe_is_trained_and_scored_once(tmp_path, monkeypatch, capsys):
    short = replace(RECIPES["textual-inversion"][BUILTIN], steps=1, batch_size=1)
    monkeypatch.setattr(recipes, "RECIPES", {"textual-inversion": {BUILTIN: short}})
    monkeypatch.setattr(recipes, "CONCEPTS", ("ana",))
    monkeypatch.setattr("costars_world.benchmarks.score.NUM_DISTRACTORS", 4)
    command = ["--out", str(tmp_path), "--recipe", "textual-inversion", "--pictures", "2"]
    recipes.main(command)
    (row,) = json.loads((tmp_path / "recipes.json").read_text())["rows"]
    assert row["recipe"] == "textual-inversion" and row["of"] == row["text"]["n"] == 2 and row["MB"] < 0.1
    assert "| textual-inversion |" in capsys.readouterr().out
    with Image.open(tmp_path / "textual-inversion.png") as sheet:
        assert sheet.width > 2 * 256
    monkeypatch.setattr(recipes, "train", None)
    monkeypatch.setattr("costars.studio.Studio.render", None)
    recipes.main(command)
    assert json.loads((tmp_path / "recipes.json").read_text())["rows"] == [row]


def test_every_second_prompt_has_a_companion(tmp_path):
    prompts = list(recipes.make_prompts("ana", tmp_path / "ana.safetensors", 4))
    assert [prompt.companion_class for prompt in prompts] == ["", "cat", "", "robot"]
    assert prompts[1].scene.prompt.startswith("{ana} next to a cat ") and prompts[0].scene.seed != prompts[1].scene.seed


@pytest.mark.parametrize("name", recipes.CONCEPTS)
def test_companions_are_of_four_other_classes(name, tmp_path):
    companions = {prompt.companion_class for prompt in recipes.make_prompts(name, tmp_path / "a.safetensors", 8)}
    assert companions == {"", *CLASSES} - {PACK[name].class_name}


def test_captions_have_the_trigger_of_the_recipe():
    subject = recipes.make_recipe_subject("ana", RECIPES["ed-lora"][BUILTIN])
    assert subject.trigger == "<ana1> <ana2>"
    assert all("<ana1> <ana2> woman" in (example.caption or "") for example in subject.examples)
    captions = [
        e.caption or "" for e in recipes.make_recipe_subject("bo", RECIPES["textual-inversion"][BUILTIN]).examples
    ]
    assert all(caption.count("<bo> man") == caption.count("<bo>") == 1 for caption in captions)
    assert any("robot" in caption for caption in captions)  # its letters contain bo
