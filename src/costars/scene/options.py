"""What a scene may set beside its cast: segmenter, style, controls, and how the model's files are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from costars.errors import nearest
from costars.scene.value import Unit, Value


class Style(Value):
    """A LoRA for the whole picture, beside those of the cast."""

    concept: str = Field(description="builtin/NAME, a name in your library, or a .safetensors file")
    weight: float = Field(
        0.8, ge=0.0, le=4.0, description="scale in the layout and the global noise (OMG's code: 1.0 x 0.8)"
    )
    member_weight: float = Field(
        0.4, ge=0.0, le=4.0, description="scale beside a member's own adapter (OMG's code: 0.5 x 0.8)"
    )
    allow_missing_layers: bool = Field(
        False, description="draw also if the model has less than half of the concept's layers of a part"
    )


class Control(Value):
    """A ControlNet that the layout keeps to, with the pose, edge or depth picture that it reads."""

    model: str = Field(description="a diffusers ControlNet: its folder, or its hub id")
    image: str = Field(description="the picture, already drawn as the ControlNet reads it; a path beside the scene")
    scale: float = Field(1.0, ge=0.0, le=4.0)
    start: Unit = Field(0.0, description="share of the steps from which it acts")
    end: Unit = Field(1.0, description="share of the steps up to which it acts")

    @model_validator(mode="after")
    def _acts_at_all(self) -> Control:
        if self.start >= self.end:
            raise ValueError(
                f"start {self.start} is not before end {self.end}, so it would never act; want start < end"
            )
        return self


class Checkpoint(Value):
    """How the model's files are read, where they do not say it themselves."""

    vae: str | None = Field(
        None, description="another decoder: a diffusers folder, a .safetensors file or a hub id; default: the model's"
    )
    config: str | None = Field(
        None, description="a diffusers folder whose .json files say how a single file is built; default: its family's"
    )
    tiles: bool = Field(
        False, description="decode in tiles that overlap: far less memory for large pictures, and slightly other ones"
    )
    prediction: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="what the UNet predicts; default: as its files say"
    )


class World(Value):
    """The built-in world's own segmenter."""

    name: Literal["world"] = "world"


class Attention(Value):
    """Where the layout's cross-attention to each class word was; needs no other model."""

    name: Literal["attention"] = "attention"


class GroundedSam(Value):
    """GroundingDINO finds boxes by phrase, SAM the figure in each."""

    name: Literal["grounded_sam"] = "grounded_sam"
    detector: str | None = Field(None, description="folder or hub id, default: IDEA-Research/grounding-dino-base")
    sam: str | None = Field(None, description="folder or hub id, default: facebook/sam-vit-huge")
    box_threshold: Unit | None = Field(None, description="default: 0.3 (OMG)")
    most_overlap: Unit | None = Field(None, description="IoU of two boxes of one phrase, default: 0.5 (OMG)")
    mask_threshold: float | None = Field(None, description="in SAM's logits, default: 0")


class OwlSam(Value):
    """OWLv2 finds boxes by phrase, SAM the figure in each."""

    name: Literal["owl_sam"] = "owl_sam"
    detector: str | None = Field(None, description="folder or hub id, default: google/owlv2-base-patch16-ensemble")
    sam: str | None = Field(None, description="folder or hub id, default: facebook/sam-vit-huge")
    template: str | None = Field(None, pattern=r"\{\}", description='{} is the phrase, default: "a photo of a {}"')
    box_threshold: Unit | None = Field(None, description="default: 0.1 (transformers' own)")
    most_overlap: Unit | None = Field(None, description="IoU of two boxes of one phrase, default: 0.5 (OMG)")
    mask_threshold: float | None = Field(None, description="in SAM's logits, default: 0")


class ClipSeg(Value):
    """CLIPSeg's map of each phrase, in connected pieces; figures of one phrase that touch are one."""

    name: Literal["clipseg"] = "clipseg"
    model: str | None = Field(None, description="folder or hub id, default: CIDAS/clipseg-rd64-refined")
    threshold: Unit | None = Field(None, description="default: 0.5")
    smallest_area: Unit | None = Field(None, description="share of the picture, default: 0.01")


SEGMENTER_KINDS = (World, Attention, GroundedSam, OwlSam, ClipSeg)
BY_PHRASE = (GroundedSam, OwlSam, ClipSeg)


def _segmenter_named(value: Any) -> Any:
    value = {"name": value} if isinstance(value, str) else value
    names = [kind.model_fields["name"].default for kind in SEGMENTER_KINDS]
    if isinstance(value, dict) and value.get("name") not in names:
        raise ValueError(f"no segmenter {value.get('name')!r}; {nearest(str(value.get('name')), names)}")
    return value


Segmenter = Annotated[
    World | Attention | GroundedSam | OwlSam | ClipSeg, Field(discriminator="name"), BeforeValidator(_segmenter_named)
]
