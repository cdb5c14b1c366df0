"""Settings of a recipe."""

from dataclasses import asdict

import pytest

from costars.train.recipe import EmConfig, Recipe, flatten_settings


def test_flatten_settings_joins_nested_names():
    assert flatten_settings({"a": 1, "em": {"b": 2, "estep": {"c": 3}}}) == {"a": 1, "em.b": 2, "em.estep.c": 3}


def test_recipe_settings_have_flat_names():
    names = flatten_settings(asdict(Recipe(em=EmConfig())))
    assert {"unet_lr", "em.rows_per_call", "em.estep.timesteps", "em.estep.crf.rounds"} <= names.keys()


def test_recipes_take_keywords_only():
    with pytest.raises(TypeError):
        Recipe("lora")
