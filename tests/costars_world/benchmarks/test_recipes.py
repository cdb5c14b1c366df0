"""claims recipes: taught once, drawn once, and scored in one table."""

import json
from dataclasses import replace

from PIL import Image

from costars.train.recipes import BUILTIN, RECIPES
from costars_world.benchmarks import recipes


def test_a_recipe_is_taught_drawn_and_scored_once(tmp_path, monkeypatch, capsys):
    brief = replace(RECIPES["textual-inversion"][BUILTIN], steps=1, batch_size=1)
    monkeypatch.setattr(recipes, "RECIPES", {"textual-inversion": {BUILTIN: brief}})
    monkeypatch.setattr(recipes, "TAUGHT", ("ana",))
    monkeypatch.setattr("costars_world.benchmarks.score.OTHERS", 4)
    command = ["--out", str(tmp_path), "--recipe", "textual-inversion", "--pictures", "2"]
    recipes.main(command)
    (row,) = json.loads((tmp_path / "recipes.json").read_text())
    assert row["recipe"] == "textual-inversion" and row["of"] == 2 and 0 <= row["text"] <= 1 and row["MB"] < 0.1
    assert "| textual-inversion |" in capsys.readouterr().out
    with Image.open(tmp_path / "textual-inversion.png") as sheet:
        assert sheet.width > 2 * 256
    monkeypatch.setattr(recipes, "teach", None)
    monkeypatch.setattr("costars.studio.Studio.render", None)
    recipes.main(command)
    assert json.loads((tmp_path / "recipes.json").read_text()) == [row]


def test_every_second_picture_asks_for_company(tmp_path):
    wanted = list(recipes.drawings("ana", tmp_path / "ana.safetensors", 4))
    assert [drawing.other for drawing in wanted] == ["", "cat", "", "robot"]
    assert wanted[1].scene.prompt.startswith("{ana} next to a cat ") and wanted[0].scene.seed != wanted[1].scene.seed


def test_captions_say_what_the_recipe_teaches():
    words = recipes.lesson("ana", RECIPES["ed-lora"][BUILTIN])
    assert words.trigger == "<ana1> <ana2>"
    assert all("<ana1> <ana2> woman" in (example.caption or "") for example in words.examples)
    beside = [e.caption or "" for e in recipes.lesson("bo", RECIPES["textual-inversion"][BUILTIN]).examples]
    assert all(caption.count("<bo> man") == caption.count("<bo>") == 1 for caption in beside)
    assert any("robot" in caption for caption in beside)  # whose letters are bo's too
