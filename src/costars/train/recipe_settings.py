"""Apply the settings of a training config to its recipe, and check that the result can be trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from costars.errors import TrainError, nearest
from costars.train.config import Setting, TrainConfig
from costars.train.config_messages import describe_problem
from costars.train.recipe import EmConfig, Recipe, flatten_settings
from costars.train.recipes import recipe_for

# Allowed range of each number, bounds included.
RANGES: Mapping[tuple[float, float], tuple[str, ...]] = {
    (1, math.inf): (
        "steps",
        "batch_size",
        "gradient_accumulation_steps",
        "rank",
        "vectors_per_token",
        "max_aspect_ratio",
        "em.refresh_every_steps",
        "em.rows_per_call",
        "em.estep.timesteps",
        "em.estep.crf.picture_px",
    ),
    (0, math.inf): (
        "num_new_tokens",
        "unet_lr",
        "text_encoder_lr",
        "embedding_lr",
        "weight_decay",
        "lr_warmup_steps",
        "max_grad_norm",
        "noise_offset",
        "background_loss_weight",
        "prior_loss_weight",
        "num_class_images",
        "attention_loss_weight",
        "embedding_norm_threshold",
        "embedding_only_steps",
        "em.freeze_after_steps",
        "em.estep.attention_prior_weight",
        "em.estep.crf.rounds",
        "em.estep.crf.smooth_weight",
        "em.estep.crf.colour_weight",
    ),
    (0.001, math.inf): (
        "alpha",
        "snr_gamma",
        "em.estep.threshold_softness",
        "em.estep.error_temperature",
        "em.estep.crf.smooth_px",
        "em.estep.crf.colour_px",
        "em.estep.crf.colour_levels",
    ),
    (0.001, 1): ("em.estep.attention_floor",),
    (0, 1): (
        "lr_decay_fraction",
        "em.estep.min_piece_fraction",
        "em.estep.max_mask_fraction",
        "em.estep.other_maps_weight",
        "em.estep.threshold_margin",
        "em.estep.error_blur_sigma",
    ),
    (0, 0.99999): ("adam_beta2",),
    (8, 128): ("em.estep.crf_size_px",),  # the CRF is exact: its kernels have this many pixels squared, squared
    (0, 2**32 - 1): ("seed",),
}
_UNUSED_BY_EM: Mapping[str, Setting] = {
    "per_layer_embeddings": False,
    "flip_augmentation": False,
    "attention_full_identity": True,
    "prior_loss_weight": 0.0,
}
_LEARNING_RATES = (("unet", "unet_lr"), ("text_encoder", "text_encoder_lr"), ("num_new_tokens", "embedding_lr"))


def build_recipe(config: TrainConfig, family: str) -> Recipe:
    """The config's recipe for a model of this family, with the config's settings.

    Raises TrainError for an unknown setting, and for values that cannot be trained.
    """
    values = asdict(recipe_for(config.recipe, family, config.model))
    _check_concepts(config, uses_em=values["em"] is not None)
    has_class_images = any(concept.class_images is not None for concept in config.concepts)
    if has_class_images:
        values["num_class_images"] = 0
    for name, value in config.settings.items():
        _set_value(values, name, value)
    try:
        recipe = TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        problems = [describe_problem(p, ["settings", *map(str, p["loc"])], values) for p in error.errors()]
        raise TrainError("; ".join(problems)) from None
    check_recipe(recipe)
    _check_class_images(recipe, has_class_images)
    return recipe


def _set_value(values: dict[str, Any], name: str, value: Setting) -> None:
    *groups, key = name.split(".")
    group = values
    for inner in groups:
        group = group[inner] if isinstance(group.get(inner), dict) else {}
    if key not in group:
        raise TrainError(f"settings.{name}: no such setting; {nearest(key, group or values)}")
    group[key] = value


def check_recipe(recipe: Recipe) -> None:
    """Raises TrainError for settings that are out of range, contradict each other, or would train nothing."""
    _check_ranges(recipe)
    if recipe.embedding_only_steps >= recipe.steps:
        raise TrainError(
            f"settings.embedding_only_steps: {recipe.embedding_only_steps} of {recipe.steps} steps, none "
            "is left for the other weights; use fewer, or "
            "train embeddings alone with unet=none, text_encoder=none and embedding_only_steps=0"
        )
    if recipe.em is not None:
        _check_em(recipe, recipe.em)
    if recipe.per_layer_embeddings and recipe.vectors_per_token > 1:
        raise TrainError(
            f"settings.vectors_per_token: {recipe.vectors_per_token}; per_layer_embeddings supports only 1; "
            "set it to 1, or per_layer_embeddings=false"
        )
    if recipe.attention_loss_weight and recipe.em is None and recipe.num_new_tokens != 2:
        raise TrainError(
            f"settings.attention_loss_weight: {recipe.attention_loss_weight:g} needs num_new_tokens=2, got "
            f"{recipe.num_new_tokens}; set num_new_tokens=2, or attention_loss_weight=0"
        )
    _check_trains_something(recipe)


def _check_ranges(recipe: Recipe) -> None:
    numbers = {k: v for k, v in flatten_settings(asdict(recipe)).items() if isinstance(v, int | float)}
    for (low, high), names in RANGES.items():
        for name in names:
            number = numbers.get(name, low)
            if not (low <= number <= high and math.isfinite(number)):
                allowed = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
                finite = "" if math.isfinite(number) else "a finite number, "
                raise TrainError(f"settings.{name}: {number}; want {finite}{allowed}")


def _check_trains_something(recipe: Recipe) -> None:
    if recipe.unet == recipe.text_encoder == "none":
        if not recipe.num_new_tokens:
            raise TrainError(
                "settings.num_new_tokens: 0 with unet=none and text_encoder=none trains nothing; "
                "change one of the three"
            )
        if recipe.embedding_norm_threshold:
            raise TrainError(
                "settings.embedding_norm_threshold: freezing the embeddings would leave nothing to train; set it to 0, "
                "or train the unet or text_encoder"
            )
    for part, rate in _LEARNING_RATES:
        trained = getattr(recipe, part)
        if trained not in (0, "none") and not getattr(recipe, rate):
            raise TrainError(f"settings.{rate}: 0 with {part}={trained} trains nothing; set it to, say, 1e-4")


def _check_class_images(recipe: Recipe, has_class_images: bool) -> None:
    count = recipe.num_class_images
    if has_class_images and count:
        raise TrainError(
            f"settings.num_class_images: {count}, but class_images are given and all of them are used; "
            "remove one of the two settings"
        )
    if recipe.prior_loss_weight and not has_class_images and not count:
        raise TrainError("settings.num_class_images: 0; prior_loss_weight needs some, such as 200, or class_images")


def _check_em(recipe: Recipe, em: EmConfig) -> None:
    for name, value in _UNUSED_BY_EM.items():
        if getattr(recipe, name) != value:
            raise TrainError(f"settings.{name}: {getattr(recipe, name)}; em does not support it; set it to {value}")
    if not recipe.num_new_tokens:
        raise TrainError("settings.num_new_tokens: 0; em locates each concept by its new tokens, want at least 1")
    if not em.attention_cell_px or min(em.attention_cell_px) < 1:
        raise TrainError(f"settings.em.attention_cell_px: {list(em.attention_cell_px)}; want sizes in px, such as [32]")
    if em.caption_template.count("{}") != 1 or set(em.caption_template.replace("{}", "")) & set("{}"):
        raise TrainError(
            f"settings.em.caption_template: {em.caption_template!r}; want one {{}}, replaced by the concepts' names"
        )


def _check_concepts(config: TrainConfig, uses_em: bool) -> None:
    if uses_em:
        for name in ("add_trigger", "captioner"):
            if getattr(config, name):
                raise TrainError(f"{name}: em writes its own captions; leave it out, or use another recipe")
        return
    for concept in config.concepts:
        if concept.background:
            raise TrainError(f"{concept.name}: {config.recipe} does not support background; use em, or leave it out")
