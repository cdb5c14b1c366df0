"""Training configuration: the same for a YAML file, the command line and a Python call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from costars.errors import TrainError, nearest
from costars.files.regular_file import expand_user, is_there
from costars.scene.options import Checkpoint
from costars.train.recipes import BUILTIN, RECIPES

_FORBID = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
_SUBJECT_KEYS = ("name", "class_name", "class", "trigger", "class_images", "background")
_WANTED_KEYS = "want keys and values: recipe, name, class and images"

Setting = bool | int | float | str | list[int] | None


class SubjectConfig(BaseModel):
    """One concept to train: its name, its class and the folder of its images."""

    model_config = _FORBID

    name: str = Field(pattern=r"^\w[\w-]{0,63}$", description="name of the concept in scenes")
    class_name: str = Field(
        min_length=1,
        validation_alias=AliasChoices("class_name", "class"),
        description="class word that the base model knows, e.g. woman",
    )
    images: str | None = Field(
        None, min_length=1, description="folder of its images; default: the folder shared by all concepts"
    )
    trigger: str | None = Field(None, description="word for the concept in captions; default: its name")
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
        raise TrainError(f"{origin}: {validation_message(error)}") from None
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


def validation_message(error: ValidationError) -> str:
    """All problems of a validation in one line."""
    messages = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            key, fields = str(problem["loc"][-1]), SubjectConfig if problem["loc"][0] == "concepts" else TrainConfig
            messages.append(f"{where}: unknown key; {nearest(key, fields.model_fields)}")
            continue
        got = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
        messages.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(messages)
