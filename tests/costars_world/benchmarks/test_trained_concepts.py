"""Prompts of a trained concept, and tables of their scores."""

import json

from costars_world.benchmarks.trained_concepts import (
    average_scores,
    format_table,
    make_concept_prompt,
    score_prompt,
)
from costars_world.render.backgrounds import PLACES


def test_prompts_use_every_place_in_turn(tmp_path):
    prompts = [make_concept_prompt("ana", tmp_path / "a.safetensors", i) for i in range(len(PLACES) + 1)]
    assert [prompt.place for prompt in prompts] == [*PLACES, next(iter(PLACES))]
    assert len({prompt.scene.seed for prompt in prompts}) == len(prompts)
    assert prompts[0].name == "ana" and prompts[0].scene.cast["ana"].concept == str(tmp_path / "a.safetensors")


def test_companion_is_named_in_the_prompt(tmp_path):
    prompt = make_concept_prompt("ana", tmp_path / "a.safetensors", 0, "cat")
    assert prompt.scene.prompt.startswith("{ana} next to a cat ") and prompt.companion_class == "cat"


def test_existing_scores_are_read(tmp_path):
    (tmp_path / "00.json").write_text(json.dumps({"similarity": 0.5}))
    assert score_prompt(None, None, tmp_path / "00.png", "ana") == {"similarity": 0.5}


def test_scores_are_averaged_and_formatted():
    averages = average_scores([{"similarity": 0.5, "first": True}, {"similarity": 1.0, "first": False}], "similarity")
    assert averages == {"similarity": 0.75}
    assert format_table([{"set": "a", **averages}]) == "| set | similarity |\n| --- | --- |\n| a | 0.75 |\n"
