"""What a person asks to be taught: the file, the command line and a Python call are all this."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from costars.errors import TrainError, nearest
from costars.scene.options import Checkpoint
from costars.train.recipes import RECIPES, Em, Recipe, flatten_settings, recipe_for

_FORBID = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
Setting = bool | int | float | str | list[int] | None

# What numbers must be, both ends allowed; no other kind of setting has a range.
_WITHIN: Mapping[tuple[float, float], str] = {
    (
        1,
        math.inf,
    ): "steps batch_size gradient_accumulation_steps rank vectors_per_token em.refresh_every_steps em.rows_per_call "
    "em.estep.timesteps max_aspect_ratio em.estep.crf.picture_px",
    (
        0,
        math.inf,
    ): "num_new_tokens unet_lr text_encoder_lr embedding_lr weight_decay lr_warmup_steps max_grad_norm noise_offset "
    "background_loss_weight prior_loss_weight num_class_images attention_loss_weight embedding_norm_threshold "
    "embedding_only_steps em.freeze_after_steps em.estep.crf.rounds "
    "em.estep.attention_prior_weight em.estep.crf.smooth_weight em.estep.crf.colour_weight",
    (0.001, math.inf): "alpha snr_gamma em.estep.threshold_softness em.estep.error_temperature em.estep.crf.smooth_px "
    "em.estep.crf.colour_px em.estep.crf.colour_levels",
    (0.001, 1): "em.estep.attention_floor",
    (0, 1): "lr_decay_fraction em.estep.min_piece_fraction em.estep.max_mask_fraction em.estep.other_maps_weight em.estep.threshold_margin em.estep.error_blur_sigma",
    (0, 0.99999): "adam_beta2",
    (8, 128): "em.estep.crf_size_px",  # the CRF's kernels are exact, of so many px squared
    (0, 2**32 - 1): "seed",
}
_NOT_OF_EM: Mapping[str, Setting] = {
    "per_layer_embeddings": False,
    "flip_augmentation": False,
    "attention_full_identity": True,
    "prior_loss_weight": 0.0,
}


_OF_EACH = ("name", "class_name", "class", "trigger", "class_images", "background")


class Subject(BaseModel):
    """One concept to teach: its name, what it is, and the folder of its pictures."""

    model_config = _FORBID

    name: str = Field(pattern=r"^\w[\w-]{0,63}$", description="what scenes call it")
    class_name: str = Field(
        min_length=1,
        validation_alias=AliasChoices("class_name", "class"),
        description="what it is to the base model, e.g. woman",
    )
    images: str | None = Field(None, description="folder of its pictures, default: the one that all share")
    trigger: str | None = Field(None, description="the word it is taught by; default: its name")
    background: bool = Field(False, description="it is what is around the others in a picture (em)")
    class_images: str | None = Field(None, description="folder of others of its class; default: the model draws them")


class TrainSpec(BaseModel):
    """Concepts to teach on a model by a recipe; settings change single numbers of it.

    One concept alone may be written without the list.
    """

    model_config = _FORBID

    recipe: str = Field(description=f"one of {', '.join(RECIPES)}")
    concepts: tuple[Subject, ...] = Field(min_length=1)
    images: str | None = Field(None, description="folder of pictures that show several of the concepts")
    model: str = "builtin"
    checkpoint: Checkpoint = Checkpoint()
    settings: dict[str, Setting] = Field(default_factory=dict, description="e.g. steps: 500")
    add_trigger: bool = Field(False, description="put the trigger into captions that lack it")
    caption: str | None = Field(None, description="a captioning model, folder or hub id, for pictures without one")

    @model_validator(mode="before")
    @classmethod
    def _one(cls, data: Any) -> Any:
        """A spec of one concept has its fields beside the others."""
        if not isinstance(data, dict) or "concepts" in data:
            return data
        own = {*_OF_EACH, "images"}
        return {k: v for k, v in data.items() if k not in own} | {
            "concepts": [{k: v for k, v in data.items() if k in own}]
        }


def parse_spec(data: Any, origin: str = "training") -> TrainSpec:
    """A spec from plain data; raises TrainError with one line for everything that is wrong."""
    if not isinstance(data, dict):
        raise TrainError(f"{origin}: holds {type(data).__name__}, want keys and values: recipe, name, class and images")
    for name in _OF_EACH if "concepts" in data else ():
        if name in data:
            raise TrainError(
                f"{origin}: {name} beside several concepts: each has its own; leave it out here, or say it of each"
            )
    try:
        spec = TrainSpec.model_validate(data)
    except ValidationError as error:
        raise TrainError(f"{origin}: {_one_line(error)}") from None
    if spec.recipe not in RECIPES:
        raise TrainError(f"{origin}: recipe {spec.recipe!r}: {nearest(spec.recipe, RECIPES)}")
    names = [subject.name for subject in spec.concepts]
    if len(set(names)) < len(names):
        raise TrainError(f"{origin}: {names} holds a name twice; give each concept a name of its own")
    return spec


def recipe_of(spec: TrainSpec, family: str) -> Recipe:
    """The spec's recipe for a model of this family; raises TrainError for a setting it does not have."""
    known = asdict(recipe_for(spec.recipe, family, spec.model))
    for name in ("add_trigger", "caption") if known["em"] else ():
        if getattr(spec, name):
            raise TrainError(f"{name}: em writes its own captions; leave it out, or use another recipe")
    for subject in spec.concepts if not known["em"] else ():
        if subject.background:
            raise TrainError(f"{subject.name}: background, but {spec.recipe} knows none; use em, or leave it out")
    given = any(subject.class_images is not None for subject in spec.concepts)
    if given:
        known["num_class_images"] = 0
    for name, value in spec.settings.items():
        *places, last = name.split(".")
        inner = known
        for place in places:
            inner = inner[place] if isinstance(inner.get(place), dict) else {}
        if last not in inner:
            raise TrainError(f"settings.{name}: no such setting; {nearest(last, inner or known)}")
        inner[last] = value
    try:
        recipe = TypeAdapter(Recipe).validate_python(known)
    except ValidationError as error:
        raise TrainError(f"settings.{_one_line(error)}") from None
    _check(recipe)
    _check_prior(recipe, given)
    return recipe


def _check(recipe: Recipe) -> None:
    """Raises TrainError for settings of which nothing would come."""
    numbers = _numbers(asdict(recipe))
    for (low, high), names in _WITHIN.items():
        for name in names.split():
            if not low <= numbers.get(name, low) <= high:
                wanted = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
                raise TrainError(f"settings.{name}: {numbers[name]}; want {wanted}")
    if recipe.embedding_only_steps >= recipe.steps:
        raise TrainError(
            f"settings.embedding_only_steps: {recipe.embedding_only_steps}, of {recipe.steps} steps; want fewer, or "
            "set unet=none and text_encoder=none with embedding_only_steps=0 for words alone"
        )
    if recipe.em is not None:
        _check_em(recipe, recipe.em)
    if recipe.per_layer_embeddings and recipe.vectors_per_token > 1:
        raise TrainError(
            f"settings.vectors_per_token: {recipe.vectors_per_token}; per-layer words have one vector, "
            "set vectors_per_token=1"
        )
    if recipe.attention_loss_weight and recipe.em is None and recipe.num_new_tokens != 2:
        raise TrainError(
            f"settings.attention_loss_weight: is of two words, this recipe has {recipe.num_new_tokens}; set it to 0"
        )
    if recipe.unet == recipe.text_encoder == "none" and (not recipe.num_new_tokens or recipe.embedding_norm_threshold):
        wrong = (
            "embedding_norm_threshold: nothing would be left to learn"
            if recipe.num_new_tokens
            else "num_new_tokens: 0, so nothing is learned"
        )
        raise TrainError(f"settings.{wrong}; train the unet, the text encoders or words")
    for part, rate in (("unet", "unet_lr"), ("text_encoder", "text_encoder_lr"), ("num_new_tokens", "embedding_lr")):
        trained = getattr(recipe, part)
        if trained not in (0, "none") and not getattr(recipe, rate):
            raise TrainError(f"settings.{rate}: 0, so {part}={trained} would not learn; set one, such as 1e-4")


def _check_prior(recipe: Recipe, given: bool) -> None:
    count = recipe.num_class_images
    if given and count:
        raise TrainError(f"settings.num_class_images: {count}; all of class_images are taken, leave one of the two out")
    if recipe.prior_loss_weight and not given and not count:
        raise TrainError(
            f"settings.num_class_images: {count}; prior_loss_weight wants some, such as 200, or class_images"
        )


def _check_em(recipe: Recipe, em: Em) -> None:
    for name, value in _NOT_OF_EM.items():
        if getattr(recipe, name) != value:
            raise TrainError(f"settings.{name}: {getattr(recipe, name)}; em does not use it, leave it {value}")
    if not recipe.num_new_tokens:
        raise TrainError("settings.num_new_tokens: 0; em finds each concept by its words, want at least 1")
    if not em.attention_cell_px or min(em.attention_cell_px) < 1:
        raise TrainError(f"settings.em.attention_cell_px: {list(em.attention_cell_px)}; want sizes in px, such as [32]")
    if em.caption_template.count("{}") != 1 or set(em.caption_template.replace("{}", "")) & set("{}"):
        raise TrainError(
            f"settings.em.caption_template: {em.caption_template!r}; want one {{}}, where the concepts are named"
        )


def _numbers(tree: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a recipe, by the name that settings give it."""
    return {name: value for name, value in flatten_settings(tree).items() if isinstance(value, int | float)}


def _one_line(error: ValidationError) -> str:
    told = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            last = str(problem["loc"][-1])
            known = Subject.model_fields if problem["loc"][0] == "concepts" else TrainSpec.model_fields
            told.append(f"{where}: unknown key; {nearest(last, known)}")
            continue
        got = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
        told.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(told)


def folder_of(images: str, base: Path | None) -> Path:
    """A folder that a spec names; a relative one is beside base."""
    return (base or Path()) / Path(images).expanduser()
