"""What the tensors of an adapter file are, by pattern of their keys.

TENSOR_KINDS is the one list of what is read, what is known to be useless and what is known but unsupported. To
support one more kind of file, change its lines to Role and add what the roles make together to BUILDERS in lora.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """A tensor that is read; `name` is its role in its layer."""

    name: str


@dataclass(frozen=True)
class Ignored:
    """A tensor that changes no layer and is skipped; with `if_empty`, only if it has no elements."""

    reason: str
    if_empty: bool = False


@dataclass(frozen=True)
class Unsupported:
    """A tensor of a kind of file that costars does not support: what the file is, and what to do instead."""

    what: str
    remedy: str


_EXTRACT = "merge it into its base model and extract a plain LoRA (sd-scripts, networks/extract_lora_from_models.py)"
_USE_LORA = "use a LoRA of the same character"

_CHECKPOINT = Unsupported("a full checkpoint", "use it as the model of the scene")
_LOCON_TUCKER = Unsupported("a LoCon with a Tucker core (lora_mid)", _EXTRACT)
_LOHA_TUCKER = Unsupported("a LoHa with a Tucker core (hada_t1)", _EXTRACT)
_DORA = Unsupported("a DoRA, which also rescales the base weights", _EXTRACT)
_LOKR = Unsupported("a LoKr", _EXTRACT)
_BOFT = Unsupported("a BOFT", _EXTRACT)
_OFT = Unsupported("an OFT or BOFT", _EXTRACT)
_IA3 = Unsupported("an (IA)^3", _EXTRACT)
_GLORA = Unsupported("a GLoRA", _EXTRACT)
_FULL_DIFFERENCE = Unsupported("a full-rank weight difference", _EXTRACT)
_SCALAR = Unsupported("a LyCORIS file with a scalar per layer", "train it without use_scalar, or " + _EXTRACT)
_NORM = Unsupported("a LyCORIS file with trained norms", "train it without train_norm")
_BUNDLE = Unsupported("a LoRA with bundled embeddings", "separate them and use the LoRA")
_IP_ADAPTER = Unsupported("an IP-Adapter", _USE_LORA)
_CONTROLNET = Unsupported("a ControlNet", _USE_LORA)
_TRANSFORMER = Unsupported("an adapter of a transformer (FLUX, SD 3, ...)", "use one made for SD 1.5, SD 2 or SDXL")
_UNNAMED_ENCODER = Unsupported(
    "an adapter of an unnamed text encoder", "put text_encoder. or text_encoder_2. before its keys"
)

# Pattern of the whole key (* is any text) -> what the tensor is. Patterns of roles are * and a literal ending. If
# several unsupported kinds fit a file, the first is reported.
TENSOR_KINDS: Mapping[str, Role | Ignored | Unsupported] = {
    # peft
    "*.lora_A.weight": Role("down"),
    "*.lora_B.weight": Role("up"),
    "*.lora_A.default.weight": Role("down"),  # with the adapter's name
    "*.lora_B.default.weight": Role("up"),
    # diffusers before peft
    "*.lora.down.weight": Role("down"),
    "*.lora.up.weight": Role("up"),
    "*.lora_linear_layer.down.weight": Role("down"),
    "*.lora_linear_layer.up.weight": Role("up"),
    "*_lora.down.weight": Role("down"),  # in attention processors
    "*_lora.up.weight": Role("up"),
    # kohya, LyCORIS, ED-LoRA
    "*.lora_down.weight": Role("down"),
    "*.lora_up.weight": Role("up"),
    "*.alpha": Role("alpha"),
    # LyCORIS LoHa
    "*.hada_w1_a": Role("w1_a"),
    "*.hada_w1_b": Role("w1_b"),
    "*.hada_w2_a": Role("w2_a"),
    "*.hada_w2_b": Role("w2_b"),
    # Custom Diffusion of diffusers
    "*.processor": Ignored("stands for a layer that keeps its own weights", if_empty=True),
    # unsupported
    "model.diffusion_model.*": _CHECKPOINT,
    "first_stage_model.*": _CHECKPOINT,
    "cond_stage_model.*": _CHECKPOINT,
    "conditioner.*": _CHECKPOINT,
    "*.lora_mid.weight": _LOCON_TUCKER,
    "*.hada_t1": _LOHA_TUCKER,
    "*.hada_t2": _LOHA_TUCKER,
    "*.dora_scale": _DORA,
    "*.lora_magnitude_vector": _DORA,
    "*.lora_magnitude_vector.*": _DORA,
    "*.lokr_*": _LOKR,
    "*.boft_*": _BOFT,
    "oft_*": _OFT,
    "*.oft_*": _OFT,
    "*.on_input": _IA3,
    "*.ia3_l": _IA3,
    "*.ia3_l.*": _IA3,
    "*.[ab][12m].weight": _GLORA,
    "*.diff": _FULL_DIFFERENCE,
    "*.diff_b": _FULL_DIFFERENCE,
    "*.scalar": _SCALAR,
    "*.w_norm": _NORM,
    "*.b_norm": _NORM,
    "bundle_emb.*": _BUNDLE,
    "image_proj.*": _IP_ADAPTER,
    "ip_adapter.*": _IP_ADAPTER,
    "control_model*": _CONTROLNET,
    "controlnet_*": _CONTROLNET,
    "lllite_*": _CONTROLNET,
    **{
        f"{start}{kind}{middle}blocks*": _TRANSFORMER
        for start in ("lora_unet_", "lora_transformer_", "transformer.", "diffusion_model.")
        for kind in ("", "single_", "double_", "joint_")
        for middle in ("", "transformer_")
    },
    "lora_te3_*": _TRANSFORMER,
    "text_model.*": _UNNAMED_ENCODER,
    "base_model.model.text_model.*": _UNNAMED_ENCODER,
}
