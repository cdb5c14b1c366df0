"""Training configuration: the same for a YAML file, the command line and a Python call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from costars.errors import TrainError, nearest
from costars.files.regular_file import expand_user, is_there
from costars.scene.names import MAX_NAME, NAME_RULE, Words, is_name, normalize_name, suggest_name
from costars.scene.options import Checkpoint
from costars.train.config_messages import describe_problem
from costars.train.data.trigger import find_trigger_problem
from costars.train.recipes import BUILTIN, RECIPES

_FORBID = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
_SUBJECT_KEYS = ("name", "class_name", "class", "trigger", "class_images", "background")
_WANTED_KEYS = "want keys and values: recipe, name, class and images"

Setting = bool | int | float | str | list[int] | None


def _check_name(name: str) -> str:
    name = normalize_name(name)
    if not is_name(name):
        raise ValueError(f"{name[:MAX_NAME]!r}: {NAME_RULE}; write {suggest_name(name)}")
    return name


def _check_trigger(trigger: str) -> str:
    if problem := find_trigger_problem(trigger):
        raise ValueError(f"{trigger[:MAX_NAME]!r} {problem}")
    return trigger


class SubjectConfig(BaseModel):
    """One concept to train: its name, its class and the folder of its images."""

    model_config = _FORBID

    name: Annotated[str, AfterValidator(_check_name)] = Field(description="name of the concept in scenes")
    class_name: Words = Field(
        validation_alias=AliasChoices("class_name", "class"),
        description="class word that the base model knows, e.g. woman",
    )
    images: str | None = Field(
        None, min_length=1, description="folder of its images; default: the folder shared by all concepts"
    )
    trigger: Annotated[Words, AfterValidator(_check_trigger)] | None = Field(
        None, description="words for the concept in captions, written as in a prompt; default: its name"
    )
    background: bool = Field(False, description="the concept is the background of the images (em only)")
    class_images: str | None = Field(
        None,
        min_length=1,
        description="folder of images of the class without the concept; default: the model generates them",
    )


class TrainConfig(BaseModel):
    """Concepts to train on a model with a recipe; `settings` override single numbers of the recipe.

    A config of one concept may have the concept's keys at the top level instead of in `concepts`.
    """

    model_config = _FORBID

    recipe: str = Field(description=f"one of {', '.join(RECIPES)}")
    concepts: tuple[SubjectConfig, ...] = Field(min_length=1)
    images: str | None = Field(None, min_length=1, description="folder of images that show several of the concepts")
    model: str = BUILTIN
    checkpoint: Checkpoint = Checkpoint()
    settings: dict[str, Setting] = Field(default_factory=dict, description="e.g. steps: 500")
    add_trigger: bool = Field(False, description="insert the trigger into captions that lack it")
    captioner: str | None = Field(
        None, description="folder or hub id of a model that captions images without a caption"
    )

    @model_validator(mode="before")
    @classmethod
    def _nest_single_concept(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "concepts" in data:
            return data
        keys = {*_SUBJECT_KEYS, "images"}
        shared = {key: value for key, value in data.items() if key not in keys}
        return shared | {"concepts": [{key: value for key, value in data.items() if key in keys}]}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the concepts."""
        return tuple(concept.name for concept in self.concepts)


def parse_config(data: Any, origin: str = "training", folder: Path | None = None) -> TrainConfig:
    """A config from plain data, its relative paths resolved in folder (default: the working directory).

    Raises TrainError with one line that lists everything that is wrong.
    """
    if not isinstance(data, dict):
        raise TrainError(f"{origin}: expected a mapping, got {type(data).__name__}; {_WANTED_KEYS}")
    for key in _SUBJECT_KEYS if "concepts" in data else ():
        if key in data:
            raise TrainError(f"{origin}: {key} is set beside concepts; set it in each concept instead")
    try:
        config = TrainConfig.model_validate(data)
    except ValidationError as error:
        raise TrainError(f"{origin}: {describe_problems(error, is_nested='concepts' in data)}") from None
    if config.recipe not in RECIPES:
        raise TrainError(f"{origin}: unknown recipe {config.recipe!r}; {nearest(config.recipe, RECIPES)}")
    if len({*config.names}) < len(config.names):
        raise TrainError(f"{origin}: duplicate concept name in {list(config.names)}; names must be unique")
    return anchor_config(config, folder or Path())


def anchor_config(config: TrainConfig, folder: Path) -> TrainConfig:
    """The config with its relative paths made absolute; names of a hub stay as they are."""
    concepts = []
    for concept in config.concepts:
        paths = {"images": _anchor_folder(concept.images, folder)}
        paths |= {"class_images": _anchor_folder(concept.class_images, folder)}
        concepts.append(concept.model_copy(update=paths))
    vae, model_config = (anchor_name(name, folder) for name in (config.checkpoint.vae, config.checkpoint.config))
    return config.model_copy(
        update={
            "concepts": tuple(concepts),
            "images": _anchor_folder(config.images, folder),
            "model": anchor_name(config.model, folder),
            "checkpoint": config.checkpoint.model_copy(update={"vae": vae, "config": model_config}),
            "captioner": anchor_name(config.captioner, folder),
        }
    )


def anchor_name(name: str | None, folder: Path) -> str | None:
    """The absolute path of a model or captioner in folder; a name with nothing there (a hub id, builtin) is kept."""
    if name is None or name == BUILTIN:
        return name
    path = folder / expand_user(name)
    return str(path.absolute()) if is_there(path) else name


def _anchor_folder(name: str | None, folder: Path) -> str | None:
    return None if name is None else str((folder / expand_user(name)).absolute())


def describe_problems(error: ValidationError, is_nested: bool) -> str:
    """All problems of a config in one line; is_nested says whether it has a list of concepts."""
    messages = []
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"]]
        fields = SubjectConfig if location[:1] == ["concepts"] else TrainConfig
        if location[:1] == ["concepts"] and not is_nested:
            location = location[2:]
        messages.append(describe_problem(problem, location, fields.model_fields))
    return "; ".join(messages)
