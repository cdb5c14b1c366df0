"""Diffusion families: the parts of a checkpoint, the text it reads and the layout of its UNet.

This module and `predict` are the only ones that know what a UNet of SD 1.5, SD 2 or SDXL is. Other modules read a
field of `Family` or call a function of this module. It imports no model library, so that concept files can be
inspected without one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention

UNET, VAE, SCHEDULER = "unet", "vae", "scheduler"  # folders of every checkpoint in diffusers' layout
TEXT_ENCODER, TEXT_ENCODER_2 = "text_encoder", "text_encoder_2"


@dataclass(frozen=True, kw_only=True)
class TextEncoderSpec:
    """A text encoder of a family and what is read from it.

    name and tokenizer are folders of a diffusers checkpoint, model_class is a class of transformers, single_file_key is
    the start of a key in every single file with this encoder. layer is the hidden layer that is read, counted from the
    end (1 is the last); final_norm applies the final norm to it; with pooled the pooled embedding is read too.
    """

    name: str
    tokenizer: str
    model_class: str
    single_file_key: str
    layer: int
    final_norm: bool
    pooled: bool


@dataclass(frozen=True, kw_only=True)
class Family:
    """Checkpoints with the same parts and the same UNet layout.

    text_width is the size of a token that cross-attention reads; cross_layers is the number of cross-attention layers.
    prediction is what the released checkpoints predict, None where releases differ. linear_projections says whether
    proj_in and proj_out of a transformer block are linear layers (else 1 x 1 convolutions). recipes names the family
    whose training recipes apply. force_zeros says that the features of an empty negative prompt are zeros where a
    checkpoint does not say otherwise (the default of diffusers' pipeline).
    """

    name: str
    title: str
    text_encoders: tuple[TextEncoderSpec, ...]
    text_width: int
    cross_layers: int
    prediction: str | None
    linear_projections: bool
    recipes: str
    force_zeros: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of a whole checkpoint in diffusers' layout."""
        return (UNET, VAE, *(f for e in self.text_encoders for f in (e.name, e.tokenizer)), SCHEDULER)


# Sizes and latent channels are not listed: every checkpoint gives its own in its configuration files.
SD15 = Family(
    name="sd15",
    title="SD 1.5",
    text_encoders=(
        TextEncoderSpec(
            name=TEXT_ENCODER,
            tokenizer="tokenizer",
            model_class="CLIPTextModel",
            single_file_key="cond_stage_model.",
            layer=1,
            final_norm=True,
            pooled=False,
        ),
    ),
    text_width=768,
    cross_layers=16,
    prediction="epsilon",
    linear_projections=False,
    recipes="sd15",
)
SD2 = Family(
    name="sd2",
    title="SD 2",
    text_encoders=SD15.text_encoders,
    text_width=1024,
    cross_layers=16,
    prediction=None,  # epsilon in the 512 px release, v_prediction in the 768 px release
    linear_projections=True,
    recipes="sd15",
)
# Podell et al. 2023, arXiv 2307.01952, section 2.1.
SDXL = Family(
    name="sdxl",
    title="SDXL",
    text_encoders=(
        TextEncoderSpec(
            name=TEXT_ENCODER,
            tokenizer="tokenizer",
            model_class="CLIPTextModel",
            single_file_key="conditioner.embedders.0.",
            layer=2,
            final_norm=False,
            pooled=False,
        ),
        TextEncoderSpec(
            name=TEXT_ENCODER_2,
            tokenizer="tokenizer_2",
            model_class="CLIPTextModelWithProjection",
            single_file_key="conditioner.embedders.1.model.ln_final.weight",
            layer=2,
            final_norm=False,
            pooled=True,
        ),
    ),
    text_width=2048,
    cross_layers=70,
    prediction="epsilon",
    linear_projections=True,
    recipes="sdxl",
    force_zeros=True,
)
FAMILIES: Mapping[str, Family] = {family.name: family for family in (SD15, SD2, SDXL)}
KNOWN_TITLES = "SD 1.5, SD 2 or SDXL"  # for error messages


def detect_family(parts: Collection[str], text_width: int | None) -> Family:
    """The family of a checkpoint with these parts, whose cross-attention reads tokens of this width.

    A second text encoder means SDXL, whatever the width. A checkpoint with one text encoder and an unknown width is
    read as SD 1.5.
    """
    if TEXT_ENCODER_2 in parts:
        return SDXL
    return next((f for f in (SD15, SD2) if f.text_width == text_width), SD15)


# The layout that the UNets of all families share, as diffusers names it.
_STAGES = ("down_blocks", "mid_block", "up_blocks")  # in the order of a call, which is not that of the modules
_CROSS = "attn2"
CROSS_KEYS_VALUES = (f"{_CROSS}.to_k", f"{_CROSS}.to_v")
ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER_PROJECTIONS = (*ATTENTION_PROJECTIONS, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")


def attention_layers(unet: UNet2DConditionModel) -> list[tuple[str, Attention]]:
    """Every attention layer with its name, in the order of the modules."""
    from diffusers.models.attention_processor import Attention

    return [(name, module) for name, module in unet.named_modules() if isinstance(module, Attention)]


def is_cross(layer: str) -> bool:
    """Whether the attention layer of this name reads text."""
    return layer.endswith(_CROSS)


def is_middle(layer: str) -> bool:
    """Whether the layer is in the mid block, where latent cells are largest."""
    return layer.startswith(_STAGES[1])


def cross_layer_index(layers: Sequence[tuple[str, object]]) -> dict[str, int]:
    """{name: index} of the cross-attention layers, counted down, mid, up (the order of Mix-of-Show's ED-LoRA)."""
    cross = [name for name, _ in layers if is_cross(name)]
    cross.sort(key=lambda name: _STAGES.index(name.partition(".")[0]))  # stable: the order within a stage is kept
    return {name: i for i, name in enumerate(cross)}


def count_cross_layers(unet: UNet2DConditionModel) -> int:
    """Number of cross-attention layers."""
    return len(cross_layer_index(attention_layers(unet)))


def attention_depths(layers: Iterable[tuple[str, object]]) -> list[int]:
    """How often the latent is halved before each attention layer of the down blocks; ascending, each once."""
    down = f"{_STAGES[0]}."
    return sorted({int(name.removeprefix(down).partition(".")[0]) for name, _ in layers if name.startswith(down)})
