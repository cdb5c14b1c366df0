"""Settings of a config applied to its recipe, and settings that are rejected."""

from dataclasses import asdict

import pytest

from costars.errors import TrainError
from costars.train.config import parse_config
from costars.train.recipe import flatten_settings
from costars.train.recipe_settings import RANGES, build_recipe
from costars.train.recipes import RECIPES

MIA = {"name": "mia", "class": "woman", "images": "mia"}


def rejected(data, family="sdxl") -> str:
    with pytest.raises(TrainError) as caught:
        build_recipe(parse_config(data), family)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_settings_override_single_numbers_of_the_recipe():
    settings = {"steps": 5, "unet_lr": "1e-3", "embedding_init": "class"}
    config = parse_config({"recipe": "ed-lora", **MIA, "settings": settings})
    for family, model in (("sdxl", "mine"), ("sd15", "mine"), ("sdxl", "builtin")):
        recipe = build_recipe(config.model_copy(update={"model": model}), family)
        default = RECIPES["ed-lora"]["builtin" if model == "builtin" else family]
        assert (recipe.steps, recipe.unet_lr, recipe.embedding_init) == (5, 1e-3, "class")
        for name in ("rank", "vectors_per_token", "embedding_lr"):
            assert getattr(recipe, name) == getattr(default, name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 5}, "settings.step: no such setting; did you mean 'steps'"),
        ({"steps": "many"}, "settings.steps: want a whole number (got 'many')"),
        ({"steps": 2.5}, "settings.steps: "),
        ({"steps": [1]}, "settings.steps: "),
        ({"em.steps": 1}, "settings.em.steps: no such setting"),
        ({"optimizer": "sgd"}, "settings.optimizer: want 'adamw', 'adafactor' or 'adamw8bit' (got 'sgd')"),
        ({"steps": 0}, "settings.steps: 0; want at least 1"),
        ({"batch_size": 0}, "settings.batch_size: 0; want at least 1"),
        ({"rank": -1}, "settings.rank: -1; want at least 1"),
        ({"alpha": 0}, "settings.alpha: 0.0; want at least 0.001"),
        ({"max_grad_norm": -1}, "settings.max_grad_norm: -1.0; want at least 0"),
        ({"unet_lr": float("nan")}, "settings.unet_lr: nan; want a finite number, at least 0"),
        ({"unet_lr": float("inf")}, "settings.unet_lr: inf; want a finite number, at least 0"),
        ({"unet_lr": "1e999"}, "settings.unet_lr: inf; want a finite number, at least 0"),
        ({"alpha": float("inf")}, "settings.alpha: inf; want a finite number, at least 0.001"),
        ({"lr_decay_fraction": 2}, "settings.lr_decay_fraction: 2.0; want 0 to 1"),
        (
            {"unet": "none", "text_encoder": "none"},
            "settings.num_new_tokens: 0 with unet=none and text_encoder=none trains nothing",
        ),
        (
            {"unet": "none", "text_encoder": "none", "num_new_tokens": 1, "embedding_norm_threshold": 1},
            "settings.embedding_norm_threshold: freezing the embeddings would leave nothing to train",
        ),
        ({"num_new_tokens": 1}, "settings.embedding_lr: 0 with num_new_tokens=1 trains nothing; set it to, say, 1e-4"),
        ({"text_encoder_lr": 0}, "settings.text_encoder_lr: 0 with text_encoder=lora trains nothing"),
        ({"prior_loss_weight": 1}, "settings.num_class_images: 0; prior_loss_weight needs some, such as 200, or class"),
        (
            {"num_new_tokens": 1, "per_layer_embeddings": True, "vectors_per_token": 2},
            "settings.vectors_per_token: 2; per_layer_embeddings supports only 1",
        ),
        ({"attention_loss_weight": 1}, "settings.attention_loss_weight: 1 needs num_new_tokens=2, got 0"),
    ],
)
def test_impossible_settings_are_rejected(settings, message):
    assert message in rejected({"recipe": "lora", **MIA, "settings": settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"steps": 4, "embedding_only_steps": 4},
            "settings.embedding_only_steps: 4 of 4 steps, none is left for the other weights; use",
        ),
        ({"em.rows_per_call": 0}, "settings.em.rows_per_call: 0; want at least 1"),
        ({"em.refresh_every_steps": 0}, "settings.em.refresh_every_steps: 0; want at least 1"),
        ({"em.attention_cell_px": [0]}, "settings.em.attention_cell_px: [0]; want sizes in px, such as [32]"),
        ({"em.estep.crf_size_px": 129}, "settings.em.estep.crf_size_px: 129; want 8 to 128"),
        ({"em.estep.attention_floor": 0}, "settings.em.estep.attention_floor: 0.0; want 0.001 to 1"),
        ({"em.estep.crf.smooth_px": 0}, "settings.em.estep.crf.smooth_px: 0.0; want at least 0.001"),
        ({"em.caption_template": "a photo"}, "settings.em.caption_template: 'a photo'; want one {}, replaced by"),
        ({"em.caption_template": "{} {x}"}, "settings.em.caption_template: '{} {x}'; want one {}"),
        ({"num_new_tokens": 0}, "settings.num_new_tokens: 0; em locates each concept by its new tokens"),
        (
            {"per_layer_embeddings": True},
            "settings.per_layer_embeddings: True; em does not support it; set it to False",
        ),
        ({"flip_augmentation": True}, "settings.flip_augmentation: True; em does not support it"),
        ({"attention_full_identity": False}, "settings.attention_full_identity: False; em does not support it"),
        ({"prior_loss_weight": 1}, "settings.prior_loss_weight: 1.0; em does not support it"),
    ],
)
def test_settings_that_em_does_not_support_are_rejected(settings, message):
    assert message in rejected({"recipe": "em", **MIA, "settings": settings})


def test_em_rejects_caption_options_and_other_recipes_reject_a_background():
    assert "add_trigger: em writes its own captions; leave it out" in rejected(
        {"recipe": "em", **MIA, "add_trigger": True}
    )
    assert "captioner: em writes its own captions" in rejected({"recipe": "em", **MIA, "captioner": "blip"})
    message = rejected({"recipe": "lora", **MIA, "background": True})
    assert message == "mia: lora does not support background; use em, or leave it out"


def test_class_images_replace_generated_ones():
    data = {"recipe": "dreambooth", **MIA, "class_images": "women"}
    assert build_recipe(parse_config(data), "sdxl").num_class_images == 0
    message = "settings.num_class_images: 5, but class_images are given and all of them are used; remove one"
    assert message in rejected(data | {"settings": {"num_class_images": 5}})


def test_every_number_of_a_recipe_has_a_range():
    numbers = {
        name
        for name, value in flatten_settings(asdict(RECIPES["em"]["sdxl"])).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    assert numbers == {name for names in RANGES.values() for name in names} - {"snr_gamma"}  # None by default


@pytest.mark.parametrize("name", RECIPES)
def test_default_settings_of_every_recipe_are_accepted(name):
    for model in ("builtin", "mine"):
        for family in ("sd15", "sdxl"):
            assert build_recipe(parse_config({"recipe": name, "model": model, **MIA}), family)
