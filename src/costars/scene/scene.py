"""The scene: what a person writes down. Its JSON schema is the file format and the API."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from costars.catalog import METHODS, method_options
from costars.errors import SceneError, nearest
from costars.scene.messages import shorten
from costars.scene.names import NAME_RULE, Words, is_name, normalize_name
from costars.scene.numbers import Seed, Size
from costars.scene.options import BY_PHRASE, SEGMENTER_KINDS, Checkpoint, Control, Segmenter, Style
from costars.scene.prompt_syntax import find_foreign_syntax
from costars.scene.value import MethodOptions, Unit, Value

Point = tuple[Unit, Unit]
Rectangle = tuple[Unit, Unit, Unit, Unit]
# As AUTOMATIC1111's prompts name one.
# Possessive, and no "<" inside: linear time also for a text of many beginnings.
_LORA = re.compile(r"<(?:lora|lyco|hypernet):([^:<>]++)(?::([^:<>]++))?+[^<>]*+>", re.IGNORECASE)
_SLOT = re.compile(r"\{([^{}]{1,64})\}")
MAX_PROMPT = 20_000  # characters; the text encoders read 600 tokens


DEFAULT_METHOD = "two_stage"
BUILTIN = "builtin"  # the model that ships with costars
SIDES = ("left", "right")  # values of `where` that are not a mask file
_OPTIONS = method_options()


def _parse_method(value: Any) -> Any:
    value = {"name": value} if isinstance(value, str) else value
    if isinstance(value, dict) and str(value.get("name")) not in METHODS:
        raise ValueError(f"no method {value.get('name')!r}; {nearest(str(value.get('name')), METHODS)}")
    return value


if TYPE_CHECKING:
    AnyMethod = MethodOptions
else:
    AnyMethod = Annotated[
        Union[tuple(_OPTIONS.values())],  # noqa: UP007 - the catalog's classes are not known here
        Field(discriminator="name"),
        BeforeValidator(_parse_method),
    ]


def _parse_place(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    numbers = isinstance(value, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in value
    )
    if not numbers or len(value) not in (2, 4) or not all(0 <= v <= 1 for v in value):
        raise ValueError(
            f"{value!r} is not a place; use left, right, a point [x, y], a box [left, top, right, bottom] (fractions "
            "of the picture from 0 to 1), or a .png mask file"
        )
    return value


class CastMember(Value):
    """One of your own characters or objects, and optionally its place and prompt."""

    concept: str = Field(description="builtin/NAME, a name in your library, or a .safetensors file")
    class_name: Words | None = Field(None, description="what the layout draws, default: the concept's own class")
    prompt: str | None = Field(None, description="the member's own prompt, default: derived from the scene's")
    negative_prompt: str | None = Field(None, description="default: the scene's")
    trigger: Words | None = Field(
        None, description="words that call the concept, as written in a prompt; default: those of its file"
    )
    weight: float = Field(1.0, ge=0.0, le=4.0, description="scale of the concept's adapter")
    allow_missing_layers: bool = Field(
        False, description="draw also if the model has less than half of the concept's layers of a part"
    )
    where: Annotated[Literal["left", "right"] | Rectangle | Point | str | None, BeforeValidator(_parse_place)] = Field(
        None,
        description="left, right, a point (x, y) that it is nearest to, a box (left, top, right, bottom), both in "
        "[0, 1], or a .png mask file",
    )
    segment_phrase: Words | None = Field(
        None, description="what a segmenter by phrase looks for, default: the class name"
    )
    depth: int | None = Field(
        None,
        ge=0,
        description="who has the cells that several masks cover, 0 before all; default: as the segmenter saw it. "
        "Figures that were found share no cell, so this tells only where masks were given or edited",
    )

    @model_validator(mode="after")
    def _check_box_is_not_empty(self) -> CastMember:
        if isinstance(self.where, tuple) and len(self.where) == 4:
            left, top, right, bottom = self.where
            if left >= right or top >= bottom:
                raise ValueError(f"the box {list(self.where)} is empty: want left < right and top < bottom")
        return self


def _by_concept(value: Any) -> Any:
    if not isinstance(value, str | dict | Value):
        raise ValueError(
            f"want a concept, such as builtin/ana, or keys such as {{concept: ...}} (got {shorten(value)})"
        )
    return {"concept": value} if isinstance(value, str) else value


def _check_cast_has_names(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"want names with their concepts, such as {{ana: builtin/ana}} (got {shorten(value)})")
    return value


class Scene(Value):
    """One picture to make: a prompt with {slots} and the cast that fills them."""

    prompt: str = Field(min_length=1, description='"{ana} in front of {bo} in a park"')
    cast: Annotated[
        dict[str, Annotated[CastMember, BeforeValidator(_by_concept)]], BeforeValidator(_check_cast_has_names)
    ] = Field(description="who fills each slot; up to any number; a concept alone may stand for {concept: ...}")
    negative_prompt: str = ""
    emphasis: Literal["original", "no_norm", "ignore"] = Field(
        "no_norm",
        description="how (word:1.2) acts: no_norm multiplies the word's features; original also restores the mean of "
        "each text encoder, which changes all words (A1111's default); ignore leaves weights out",
    )
    force_zeros_for_empty_prompt: bool | None = Field(
        None,
        description="whether an empty negative prompt is zeros; false encodes it (OMG); "
        "default: as the checkpoint's model_index.json says, true for an SDXL file without one",
    )
    model: str = Field(
        BUILTIN,
        description="builtin, a diffusers folder, a .safetensors checkpoint, or a hub id org/name[@revision]; "
        "SD 1.5, SD 2 or SDXL",
    )
    checkpoint: Checkpoint = Checkpoint()
    method: AnyMethod = Field(default_factory=_OPTIONS[DEFAULT_METHOD], validate_default=True)
    segmenter: Segmenter | None = Field(
        None, description="default: world for the built-in model, attention for any other"
    )
    lowest_score: Unit | None = Field(
        None,
        description="least score with which a figure of the layout counts as a member; "
        "default: 0.3, or 0 for a segmenter with a threshold of its own",
    )
    scheduler: str = Field(
        "checkpoint",
        description="checkpoint: the one that the model ships with; or ddim, euler, dpm++ 2m karras, euler a, ... "
        "or the name of the class of diffusers",
    )
    size: Size | None = Field(
        None, description="[width, height] in px or text such as 1024x1024, default: the model's own"
    )
    steps: int | None = Field(
        None, ge=1, le=999, description="default: 12 on the built-in model, 50 on any other (official code)"
    )
    guidance_scale: float = Field(5.0, ge=0.0, le=50.0, description="1 or less: no guidance, and half the rows")
    start: Unit | None = Field(
        None,
        description="share of the steps before identities take part; "
        "default: 0.12 on the built-in model, 16/50 on any other (official code)",
    )
    seed: Seed = Field(0, description="of the noise; random: another one each time, which the picture keeps")
    count: int = Field(1, ge=1, le=1000, description="number of pictures, with this seed and the following ones")
    clip_skip: int | None = Field(
        None,
        ge=1,
        le=12,
        description="layer of the text encoders that is read, from the end; default: 1 for SD 1.5 and 2, 2 for SDXL",
    )
    style: Annotated[Style, BeforeValidator(_by_concept)] | None = Field(
        None, description="a LoRA for the whole picture; a concept alone may stand for {concept: ...}"
    )
    controls: tuple[Control, ...] = ()

    @classmethod
    def class_at(cls, location: tuple[int | str, ...]) -> type[BaseModel]:
        """The class whose keys are allowed at this location of a scene."""
        return _class_at(location)

    @model_validator(mode="after")
    def _check_prompts_load_no_lora(self) -> Scene:
        prompts = [self.prompt, self.negative_prompt]
        for member in self.cast.values():
            prompts += [member.prompt or "", member.negative_prompt or "", member.trigger or ""]
        for prompt in prompts:
            if len(prompt) > MAX_PROMPT:
                raise ValueError(f"prompt of {len(prompt)} characters, at most {MAX_PROMPT} are read; shorten it")
            if found := _LORA.search(prompt):
                name, weight = found.group(1), found.group(2) or "1.0"
                raise ValueError(
                    f"{found.group(0)!r}: prompts do not load LoRAs; for a character write "
                    f"cast.NAME.concept: {name} and cast.NAME.weight: {weight}, for a style write "
                    f"style: {{concept: {name}, weight: {weight}}}"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _compose_accents(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data, cast = dict(data), data.get("cast")
        if isinstance(data.get("prompt"), str):
            data["prompt"] = normalize_name(data["prompt"])
        if isinstance(cast, dict):
            data["cast"] = {normalize_name(name) if isinstance(name, str) else name: v for name, v in cast.items()}
        return data

    @model_validator(mode="after")
    def _check_prompt_syntax(self) -> Scene:
        prompts = {"prompt": self.prompt, "negative_prompt": self.negative_prompt}
        for name, member in self.cast.items():
            fields = {"prompt": member.prompt, "negative_prompt": member.negative_prompt, "trigger": member.trigger}
            prompts |= {f"cast.{name}.{field}": text for field, text in fields.items() if text}
        for field, prompt in prompts.items():
            if problem := find_foreign_syntax(prompt):
                raise ValueError(f"{field}: {problem}")
            named = next((n for n in _SLOT.findall(prompt) if normalize_name(n) in self.cast), None)
            if named and field != "prompt":
                raise ValueError(
                    f"{field}: has the slot {{{named}}}, which only the scene's prompt fills; write the words that "
                    "call the member, such as its trigger and class"
                )
        return self

    @model_validator(mode="after")
    def _check_phrases_are_used(self) -> Scene:
        named = [name for name, member in self.cast.items() if member.segment_phrase]
        if named and not isinstance(self.segmenter, BY_PHRASE):
            raise ValueError(
                f"cast.{named[0]}.segment_phrase is used by the segmenters grounded_sam, owl_sam and clipseg only; "
                "set segmenter to one of them, or remove the phrase"
            )
        return self

    @model_validator(mode="after")
    def _check_slots_match_cast(self) -> Scene:
        slots = self.slots()
        if not slots:
            raise ValueError(f"prompt {self.prompt!r} has no slot; write one {{name}} for each cast member")
        for slot in slots:
            if slot not in self.cast:
                raise ValueError(
                    f"prompt has the slot {{{slot}}} but the cast has no such member; {nearest(slot, self.cast)}"
                )
        counts = Counter(slots)
        for name in self.cast:
            if counts[name] != 1:
                raise ValueError(
                    f"cast member {name!r} has {counts[name]} slots in the prompt {self.prompt!r}; "
                    f"write {{{name}}} there exactly once, or remove the member"
                )
        return self

    def each(self) -> list[Scene]:
        """One scene for each of its pictures."""
        return [self.model_copy(update={"seed": self.seed + i, "count": 1}) for i in range(self.count)]

    def slots(self) -> list[str]:
        """The names in braces, in the prompt's order. Raises ValueError for a slot that is not a name."""
        try:
            parsed = [part[1:] for part in Formatter().parse(self.prompt) if part[1] is not None]
        except ValueError as error:
            raise ValueError(f"prompt {self.prompt!r}: {error}; write slots as {{name}}") from None
        for name, form, conversion in parsed:
            if form or conversion or not is_name(name or ""):
                raise ValueError(f"prompt {self.prompt!r}: a slot is a name in braces, {name!r} is none; {NAME_RULE}")
        return [str(name) for name, _, _ in parsed]


def parse_scene(data: Any, origin: str = "scene") -> Scene:
    """A scene from plain data; raises SceneError with one line for everything that is wrong."""
    if isinstance(data, dict) and isinstance(data.get("scene"), dict):
        raise SceneError(f"{origin}: is the record of a run, not a scene; use its folder or its picture.png")
    if not isinstance(data, dict):
        raise SceneError(
            f"{origin}: contains {type(data).__name__}, not keys and values; a scene needs at least prompt and cast"
        )
    try:
        return Scene.model_validate(data)
    except SceneError as error:
        raise SceneError(f"{origin}: {str(error).removeprefix('scene: ')}") from None


def _class_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    match location:
        case ("cast", *_):
            return CastMember
        case ("method", name, *_):
            return _OPTIONS.get(str(name), _OPTIONS[DEFAULT_METHOD])
        case ("segmenter", name, *_):
            return next((kind for kind in SEGMENTER_KINDS if kind.model_fields["name"].default == name), Scene)
        case ("style", *_):
            return Style
        case ("checkpoint", *_):
            return Checkpoint
        case ("controls", *_):
            return Control
        case _:
            return Scene
