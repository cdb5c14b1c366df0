"""python -m costars_world.benchmarks.em_masks: held-out sets, and what each part of the recipe adds."""

import json
from dataclasses import replace

from costars.train.em.estep_masks import EStepConfig
from costars.train.recipes import BUILTIN, RECIPES
from costars_world.benchmarks import em, em_masks
from costars_world.benchmarks.em_masks import ATTENTION, OWN


def test_held_out_sets_have_other_identities_and_pictures():
    tuned = {
        identity
        for number in range(em_masks.FIRST_HELD_OUT)
        for identity in map(str, em.set_identities(number).values())
    }
    pictures = {em.draw_group_pictures(number)[0].image.tobytes() for number in range(em_masks.FIRST_HELD_OUT)}
    for number in range(em_masks.FIRST_HELD_OUT, em_masks.FIRST_HELD_OUT + 5):
        assert em.set_classes(number) == em.set_classes(number - 5)
        assert not tuned & set(map(str, em.set_identities(number).values()))
        assert em.draw_group_pictures(number)[0].image.tobytes() not in pictures


def test_recipes_differ_in_their_e_step_alone():
    own, attention = (em_masks.make_recipe(evidence) for evidence in (OWN, ATTENTION))
    assert own == RECIPES["em"][BUILTIN] and own.em.estep.use_likelihood and not attention.em.estep.use_likelihood
    assert replace(attention, em=own.em) == own


def test_effect_of_the_e_step_is_told_from_that_of_alternation():
    rows = [
        {"number": number, "evidence": evidence, "iou": {"0": first + shift, "50": last + shift}}
        for number, shift in ((5, 0.0), (6, 0.1))
        for evidence, first, last in ((ATTENTION, 0.6, 0.65), (OWN, 0.7, 0.72))
    ]
    result = em_masks.decompose(rows, 50)
    means = {name: value["mean"] for name, value in result["differences"].items()}
    assert means == {
        "all: recipe with training - frozen attention masks": 0.12,
        "other E-step, before training": 0.1,
        "alternation, recipe": 0.02,
        "alternation, attention alone": 0.05,
    }
    assert result["iou"][OWN]["first masks"] == {"n": 2, "mean": 0.75, "low": 0.7, "high": 0.8}


def test_sets_are_measured_once(tmp_path, monkeypatch, capsys):
    recipe = RECIPES["em"][BUILTIN]
    config = replace(recipe.em, rows_per_call=2, refresh_every_steps=1, estep=EStepConfig(timesteps=2, crf_size_px=16))
    short = replace(recipe, batch_size=1, em=config)
    monkeypatch.setattr(em_masks, "RECIPES", {"em": {BUILTIN: short}})
    monkeypatch.setattr(em, "IMAGES_PER_SET", 1)
    command = ["--out", str(tmp_path), "--sets", "1", "--steps", "1"]
    em_masks.main(command)
    facts = json.loads((tmp_path / "em-masks.json").read_text())
    assert [(row["evidence"], list(row["iou"])) for row in facts["sets"]] == [
        (ATTENTION, ["0", "1"]),
        (OWN, ["0", "1"]),
    ]
    assert facts["command"].endswith("em_masks --sets 1 --steps 1") and "alternation, recipe" in capsys.readouterr().out
    monkeypatch.setattr(em_masks, "train", None)
    em_masks.main(command)
    assert json.loads((tmp_path / "em-masks.json").read_text()) == facts
