"""The scene: what a person writes down. Its JSON schema is the file format and the API."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from costars.errors import SceneError, nearest

Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Point = tuple[Unit, Unit]
Rectangle = tuple[Unit, Unit, Unit, Unit]


_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_LORA = re.compile(r"<(?:lora|lyco|hypernet):([^:>]+)(?::([^:>]+))?[^>]*>")  # as AUTOMATIC1111's prompts name one


class Defaults(NamedTuple):
    """What a scene gets where it leaves the choice to its model."""

    start: float
    own_words_share: float


LOWEST_SCORE = 0.3  # chosen on the built-in world's held-out renders
OFFICIAL = Defaults(start=16 / 50, own_words_share=0.0)  # OMG's code, made for SDXL
MEASURED = {"builtin": Defaults(start=0.12, own_words_share=1.0)}  # docs/results.md


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _placed(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    numbers = isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value)
    if not numbers or len(value) not in (2, 4) or not all(0 <= v <= 1 for v in value):
        raise ValueError(
            f"{value!r} is no place; want left, right, a point [x, y] or a box [left, top, right, bottom] "
            "in shares of the picture from 0 to 1, or a .png mask file"
        )
    return value


class CastMember(_Value):
    """One of your own characters or objects, and optionally where it stands and what it does."""

    concept: str = Field(description="builtin/NAME, a name in your library, or a .safetensors file")
    class_name: str | None = Field(None, description="what the layout draws, default: the concept's own class")
    prompt: str | None = Field(None, description="the member's own prompt, default: derived from the scene's")
    negative_prompt: str | None = Field(None, description="default: the scene's")
    weight: float = Field(1.0, ge=0.0, le=4.0, description="scale of the concept's adapter")
    where: Annotated[Literal["left", "right"] | Rectangle | Point | str | None, BeforeValidator(_placed)] = Field(
        None,
        description="left, right, a point (x, y) to be nearest to, a box (left, top, right, bottom), both in [0, 1], "
        "or a .png mask file",
    )
    segment_phrase: str | None = Field(
        None, min_length=1, description="what a segmenter by phrase looks for, default: the class name"
    )
    depth: int | None = Field(None, ge=0, description="0 is the front-most; default: as the segmenter saw it")

    @model_validator(mode="after")
    def _box_has_an_inside(self) -> CastMember:
        if isinstance(self.where, tuple) and len(self.where) == 4:
            left, top, right, bottom = self.where
            if left >= right or top >= bottom:
                raise ValueError(f"the box {list(self.where)} is empty: want left < right and top < bottom")
        return self


class Style(_Value):
    """A LoRA for the whole picture, beside those of the cast."""

    concept: str = Field(description="builtin/NAME, a name in your library, or a .safetensors file")
    weight: float = Field(
        0.8, ge=0.0, le=4.0, description="scale in the layout and the global noise (OMG's code: 1.0 x 0.8)"
    )
    member_weight: float = Field(
        0.4, ge=0.0, le=4.0, description="scale beside a member's own adapter (OMG's code: 0.5 x 0.8)"
    )


class Control(_Value):
    """A ControlNet that the layout keeps to, with the pose, edge or depth picture that it reads."""

    model: str = Field(description="a diffusers ControlNet: its folder, or its hub id")
    image: str = Field(description="the picture, already drawn as the ControlNet reads it; a path beside the scene")
    scale: float = Field(1.0, ge=0.0, le=4.0)
    start: Unit = Field(0.0, description="share of the steps from which it acts")
    end: Unit = Field(1.0, description="share of the steps up to which it acts")


class Checkpoint(_Value):
    """How the model's files are read, where they do not say it themselves."""

    vae: str | None = Field(
        None, description="another decoder: a diffusers folder, a .safetensors file or a hub id; default: the model's"
    )
    config: str | None = Field(
        None, description="a diffusers folder whose .json files say how a single file is built; default: its family's"
    )
    prediction: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="what the UNet predicts; default: as its files say"
    )


class TwoStage(_Value):
    """OMG: draw the layout with class words, find who is where, then put each identity in place."""

    name: Literal["two_stage"] = "two_stage"
    blend: bool = Field(
        True, description="blend the concepts' noise by the masks (Eq. 6 of OMG); false: all adapters on one path"
    )
    feather_cells: float = Field(0.0, ge=0.0, le=8.0, description="soft mask edge, in latent cells (OMG: 0)")
    overlap: Literal["front", "sum"] = Field(
        "front",
        description="a cell that several masks cover, as edited or given ones may: "
        "the front figure has it, or their noise is summed (official code)",
    )
    layout_strength: Unit = Field(
        1.0, description="share of the steps in which the layout's cross-attention is kept (OMG, official code: 1)"
    )
    self_attention_share: Unit = Field(
        0.4, description="share of the steps in which its self-attention is kept too (OMG, official code: 0.4)"
    )
    self_attention_cell_px: int = Field(
        32, ge=1, description="coarsest cell, in px, from which self-attention is kept (official code: 32 x 32 at 1024)"
    )
    own_words_share: Unit | None = Field(
        None,
        description="share of the steps, counted from the first, in which a member's own words reach only its mask, "
        "where noise is blended; default: 1 on the built-in model, 0 on any other (official code)",
    )


class MultiLora(_Value):
    """The baseline: every adapter at once on one path."""

    name: Literal["multi_lora"] = "multi_lora"


class World(_Value):
    """The built-in world's own segmenter."""

    name: Literal["world"] = "world"


class Attention(_Value):
    """Where the layout's cross-attention to each class word was; needs no other model."""

    name: Literal["attention"] = "attention"


class GroundedSam(_Value):
    """GroundingDINO finds boxes by phrase, SAM the figure in each."""

    name: Literal["grounded_sam"] = "grounded_sam"
    detector: str | None = Field(None, description="folder or hub id, default: IDEA-Research/grounding-dino-base")
    sam: str | None = Field(None, description="folder or hub id, default: facebook/sam-vit-huge")
    box_threshold: Unit | None = Field(None, description="default: 0.3 (OMG)")
    most_overlap: Unit | None = Field(None, description="IoU of two boxes of one phrase, default: 0.5 (OMG)")
    mask_threshold: float | None = Field(None, description="in SAM's logits, default: 0")


class OwlSam(_Value):
    """OWLv2 finds boxes by phrase, SAM the figure in each."""

    name: Literal["owl_sam"] = "owl_sam"
    detector: str | None = Field(None, description="folder or hub id, default: google/owlv2-base-patch16-ensemble")
    sam: str | None = Field(None, description="folder or hub id, default: facebook/sam-vit-huge")
    template: str | None = Field(None, pattern=r"\{\}", description='{} is the phrase, default: "a photo of a {}"')
    box_threshold: Unit | None = Field(None, description="default: 0.1 (transformers' own)")
    most_overlap: Unit | None = Field(None, description="IoU of two boxes of one phrase, default: 0.5 (OMG)")
    mask_threshold: float | None = Field(None, description="in SAM's logits, default: 0")


class ClipSeg(_Value):
    """CLIPSeg's map of each phrase, in connected pieces; figures of one phrase that touch are one."""

    name: Literal["clipseg"] = "clipseg"
    model: str | None = Field(None, description="folder or hub id, default: CIDAS/clipseg-rd64-refined")
    threshold: Unit | None = Field(None, description="default: 0.5")
    smallest_area: Unit | None = Field(None, description="share of the picture, default: 0.01")


SEGMENTER_KINDS = (World, Attention, GroundedSam, OwlSam, ClipSeg)
BY_PHRASE = (GroundedSam, OwlSam, ClipSeg)


def _named_segmenter(value: Any) -> Any:
    value = {"name": value} if isinstance(value, str) else value
    names = [kind.model_fields["name"].default for kind in SEGMENTER_KINDS]
    if isinstance(value, dict) and value.get("name") not in names:
        raise ValueError(f"no segmenter {value.get('name')!r}; {nearest(str(value.get('name')), names)}")
    return value


Segmenter = Annotated[
    World | Attention | GroundedSam | OwlSam | ClipSeg, Field(discriminator="name"), BeforeValidator(_named_segmenter)
]


def _named(value: Any) -> Any:
    value = {"name": value} if isinstance(value, str) else value
    names = [kind.model_fields["name"].default for kind in (TwoStage, MultiLora)]
    if isinstance(value, dict) and value.get("name") not in names:
        raise ValueError(f"no method {value.get('name')!r}; {nearest(str(value.get('name')), names)}")
    return value


Method = Annotated[TwoStage | MultiLora, Field(discriminator="name"), BeforeValidator(_named)]


class Scene(_Value):
    """One picture to make: a prompt with {slots} and the cast that fills them."""

    prompt: str = Field(min_length=1, description='"{ana} in front of {bo} in a park"')
    cast: dict[str, CastMember] = Field(description="who fills each slot; up to any number")
    negative_prompt: str = ""
    model: str = Field(
        "builtin",
        description="builtin, a diffusers folder, a .safetensors checkpoint, or a hub id org/name[@revision]; "
        "SD 1.5, SD 2 or SDXL",
    )
    checkpoint: Checkpoint = Checkpoint()
    method: Method = TwoStage()
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
        "or the name of a class of diffusers",
    )
    size: tuple[Annotated[int, Field(ge=64)], Annotated[int, Field(ge=64)]] | None = Field(
        None, description="(width, height) in px, default: the model's own"
    )
    steps: int = Field(50, ge=1, le=999)
    guidance_scale: float = Field(5.0, ge=0.0, le=50.0, description="1 or less: no guidance, and half the rows")
    start: Unit | None = Field(
        None,
        description="share of the steps before identities come in; "
        "default: 0.12 on the built-in model, 16/50 on any other (official code)",
    )
    seed: int = Field(0, ge=0, lt=2**63)
    count: int = Field(1, ge=1, le=1000, description="pictures to draw, with this seed and those that follow it")
    clip_skip: int | None = Field(
        None,
        ge=1,
        le=12,
        description="which layer of the text encoders is read, from the end; default: 1 in SD 1.5 and 2, 2 in SDXL",
    )
    style: Style | None = None
    controls: tuple[Control, ...] = ()

    @model_validator(mode="after")
    def _prompts_load_nothing(self) -> Scene:
        told = [self.prompt, self.negative_prompt]
        for member in self.cast.values():
            told += [member.prompt or "", member.negative_prompt or ""]
        for prompt in told:
            if found := _LORA.search(prompt):
                name, weight = found.group(1), found.group(2) or "1.0"
                raise ValueError(
                    f"a prompt loads no LoRA here, but {found.group(0)!r} stands in one; for a character write "
                    f"cast.NAME.concept: {name} and cast.NAME.weight: {weight}, for a style write "
                    f"style: {{concept: {name}, weight: {weight}}}"
                )
        return self

    @model_validator(mode="after")
    def _phrases_are_read(self) -> Scene:
        told = [name for name, member in self.cast.items() if member.segment_phrase]
        if told and not isinstance(self.segmenter, BY_PHRASE):
            raise ValueError(
                f"cast.{told[0]}.segment_phrase is read by no other segmenter than grounded_sam, owl_sam and clipseg; "
                "set segmenter to one of them, or leave the phrase out"
            )
        return self

    @model_validator(mode="after")
    def _slots_are_the_cast(self) -> Scene:
        slots = self.slots()
        if not slots:
            raise ValueError(f"prompt {self.prompt!r} has no slot; write one {{name}} for each cast member")
        for slot in slots:
            if slot not in self.cast:
                raise ValueError(
                    f"prompt has the slot {{{slot}}} but the cast has no such member; {nearest(slot, self.cast)}"
                )
        for name in self.cast:
            if slots.count(name) != 1:
                raise ValueError(
                    f"cast member {name!r} has {slots.count(name)} slots in the prompt {self.prompt!r}; "
                    f"write {{{name}}} there exactly once, or remove the member"
                )
        return self

    def settled(self) -> Scene:
        """The scene with what it leaves to its model filled in."""
        wants, method = MEASURED.get(self.model, OFFICIAL), self.method
        if isinstance(method, TwoStage) and method.own_words_share is None:
            method = method.model_copy(update={"own_words_share": wants.own_words_share})
        start = wants.start if self.start is None else self.start
        score = self._least_score() if self.lowest_score is None else self.lowest_score
        return self.model_copy(update={"start": start, "method": method, "lowest_score": score})

    def unsettled(self) -> Scene:
        """The scene with what its model would fill in left open, so that another model fills in its own."""
        wants, method = MEASURED.get(self.model, OFFICIAL), self.method
        if isinstance(method, TwoStage) and method.own_words_share == wants.own_words_share:
            method = method.model_copy(update={"own_words_share": None})
        start = None if self.start == wants.start else self.start
        score = None if self.lowest_score == self._least_score() else self.lowest_score
        return self.model_copy(update={"start": start, "method": method, "lowest_score": score})

    def _least_score(self) -> float:
        return 0.0 if isinstance(self.segmenter, BY_PHRASE) else LOWEST_SCORE

    def each(self) -> list[Scene]:
        """One scene for each of its pictures, every one as if it were asked for alone."""
        return [self.model_copy(update={"seed": self.seed + i, "count": 1}) for i in range(self.count)]

    def slots(self) -> list[str]:
        """The names in braces, in the prompt's order. Raises ValueError for a slot that is not a name."""
        try:
            parsed = [part[1:] for part in Formatter().parse(self.prompt) if part[1] is not None]
        except ValueError as error:
            raise ValueError(f"prompt {self.prompt!r}: {error}; write slots as {{name}}") from None
        for name, form, conversion in parsed:
            if form or conversion or not _NAME.fullmatch(name or ""):
                raise ValueError(
                    f"prompt {self.prompt!r}: a slot is a name in braces, of letters, digits, - and _, "
                    f"beginning with a letter; {name!r} is not"
                )
        return [str(name) for name, _, _ in parsed]


def parse_scene(data: Any, origin: str = "scene") -> Scene:
    """A scene from plain data; raises SceneError with one line for everything that is wrong."""
    if not isinstance(data, dict):
        raise SceneError(f"{origin}: holds {type(data).__name__}, not keys and values; write at least prompt and cast")
    try:
        return Scene.model_validate(data)
    except ValidationError as error:
        raise SceneError(f"{origin}: {_one_line(error)}") from None


def load_scene(path: Path) -> Scene:
    """A scene from a .yaml, .toml or .json file, or from a picture that costars wrote."""
    readers: dict[str, Callable[[str], Any]] = {
        ".yaml": yaml.safe_load,
        ".yml": yaml.safe_load,
        ".toml": tomllib.loads,
        ".json": json.loads,
    }
    if path.suffix == ".png":
        return _scene_in_picture(path)
    if path.suffix not in readers:
        raise SceneError(f"{path}: a scene is a .yaml, .toml or .json file, or a .png that costars wrote")
    try:
        data = readers[path.suffix](path.read_text())
    except OSError as error:
        raise SceneError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, yaml.YAMLError) as error:
        raise SceneError(f"{path}: not valid {path.suffix[1:]}: {' '.join(str(error).split())}") from None
    return parse_scene(data, str(path))


def _scene_in_picture(path: Path) -> Scene:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get("costars")
    except (OSError, UnidentifiedImageError):
        raise SceneError(f"{path}: cannot be read as a picture; check the path") from None
    if text is None:
        raise SceneError(f"{path}: holds no scene; give a picture that costars wrote, or a scene file")
    try:
        data = json.loads(text)["scene"]
    except (ValueError, KeyError, TypeError):
        raise SceneError(f"{path}: its scene is damaged; give the scene file instead") from None
    return parse_scene(data, str(path))


def with_settings(scene: Scene, settings: list[str], origin: str = "scene with --set") -> Scene:
    """The scene with key=value changes; keys may be dotted (cast.ana.weight), values are YAML."""
    changes_model = any(setting.partition("=")[0] == "model" for setting in settings)
    data = (scene.unsettled() if changes_model else scene).model_dump(mode="json")
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise SceneError(f"--set {setting}: want key=value, for example seed=3 or cast.ana.weight=0.8")
        *parents, last = key.split(".")
        here = data
        for parent in parents:
            if parent not in here:
                raise SceneError(f"--set {setting}: the scene has no {parent!r}; {nearest(parent, here)}")
            if not isinstance(here[parent], dict):
                raise SceneError(f"--set {setting}: {parent!r} has no parts; set it as a whole, {parent}=...")
            here = here[parent]
        try:
            here[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise SceneError(f"--set {setting}: {value!r} is not a YAML value; quote it") from None
    return parse_scene(data, origin)


def _one_line(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _class_at(problem["loc"])
            message = f"unknown key; {nearest(str(problem['loc'][-1]), known.model_fields)}"
        elif problem["type"] != "value_error":
            message += f" (got {problem['input']!r})"
        problems.append(f"{where}: {message}" if where else message)
    return "; ".join(problems)


def _class_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    """Whose keys are allowed at this place of a scene."""
    match location:
        case ("cast", *_):
            return CastMember
        case ("method", "multi_lora", *_):
            return MultiLora
        case ("method", *_):
            return TwoStage
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
