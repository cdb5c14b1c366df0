"""The table of recipes, and reference losses of short runs."""

from dataclasses import replace

import pytest

from costars.train.loop import TRAINING, train
from costars.train.recipes import BUILTIN, RECIPES, recipe_for


def test_every_recipe_supports_every_family():
    for name, families in RECIPES.items():
        assert set(families) == {"sd15", "sdxl", BUILTIN}
        assert recipe_for(name, "sd2", "mine") == families["sd15"]
        assert recipe_for(name, "sdxl", "mine") == families["sdxl"]
        assert recipe_for(name, "sdxl", "builtin") == recipe_for(name, "sd15", "builtin") == families[BUILTIN]


def test_every_trained_part_has_a_learning_rate():
    for families in RECIPES.values():
        for recipe in families.values():
            assert recipe.unet == "none" or recipe.unet_lr > 0
            assert recipe.text_encoder == "none" or recipe.text_encoder_lr > 0
            assert (recipe.embedding_lr > 0) == (recipe.num_new_tokens > 0)
            assert not recipe.flip_augmentation
            assert bool(recipe.prior_loss_weight) == bool(recipe.num_class_images)


# The first losses of each recipe on the tiny SDXL checkpoint with seed 0, in float32, which is alike on every machine.
# A different number means that parameters, noise or optimizer of a recipe have changed.
RECORDED = {
    "lora": (0.065032, 0.140628, 0.094353),
    "dreambooth": (0.576317, 0.215585, 0.94976),
    "textual-inversion": (0.061075, 0.153085, 0.085432),
    "custom-diffusion": (0.57236, 0.228182, 0.939829),
    "ed-lora": (0.104540, 0.235160, 0.126237),
    "em": (0.075430, 0.186087, 0.092075),  # with given masks: the edges of learned ones depend on rounding
}


@pytest.mark.parametrize("name", RECORDED)
def test_losses_of_a_short_run_match_the_recorded_ones(small, make_task, short_recipe, name):
    """Class images are drawn with an encoded empty negative prompt, as when the losses were recorded."""
    model = replace(small, info=replace(small.info, force_zeros=False))
    recipe = short_recipe(name, precision="fp32")
    recipe = replace(recipe, em=recipe.em and replace(recipe.em, masks="given"))
    *events, _ = train(make_task(recipe, model=model))
    losses = [event.loss for event in events if event.stage == TRAINING]
    assert losses == pytest.approx(RECORDED[name], rel=1e-3), name
