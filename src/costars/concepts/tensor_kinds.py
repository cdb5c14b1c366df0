"""What the tensors of an adapter file are, by pattern of their keys.

TENSOR_KINDS is the one list of what is read, what is known to be useless and what is known but unsupported. To
support one more kind of file, change its lines to Role and add what the roles make together to KINDS in layer_kinds.
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
    unless_read: bool = False  # a key that is a known tensor of a known layer does not show this kind


_EXTRACT = "merge it into its base model and extract a plain LoRA (sd-scripts, networks/extract_lora_from_models.py)"
_USE_LORA = "use a LoRA of the same character"

_CHECKPOINT = Unsupported("a full checkpoint", "use it as the model of the scene", unless_read=True)
_OLD_OFT = Unsupported("an OFT of an old version of LyCORIS or peft", _EXTRACT)
_GLORA_CORE = Unsupported("a GLoRA with a Tucker core (bm)", _EXTRACT)
_RESHAPED = Unsupported("a file that gives layers another shape (reshape_weight)", _USE_LORA)
_LORA_BIAS = Unsupported("a LoRA whose up matrices have biases (lora_bias)", "train it without lora_bias")
_MODULES_TO_SAVE = Unsupported("an adapter with whole modules (modules_to_save)", "train it without modules_to_save")
_TOKENS_OF_PEFT = Unsupported(
    "an adapter with trained tokens (trainable_token_indices)", "train the tokens as a textual inversion"
)
_VARIANT = Unsupported("a variant of LoRA with more tensors (KaSA, VeRA, BD-LoRA, ...)", _USE_LORA)
_BUNDLE = Unsupported("a LoRA with bundled embeddings", "separate them and use the LoRA")
_IP_ADAPTER = Unsupported("an IP-Adapter", _USE_LORA)
_CONTROLNET = Unsupported("a ControlNet", _USE_LORA)
_TRANSFORMER = Unsupported("an adapter of a transformer (FLUX, SD 3, ...)", "use one made for SD 1.5, SD 2 or SDXL")
_PRIOR = Unsupported("a LoRA of a prior (Stable Cascade, Kandinsky)", "use one made for SD 1.5, SD 2 or SDXL")
_UNNAMED_ENCODER = Unsupported(
    "an adapter of an unnamed text encoder", "put text_encoder. or text_encoder_2. before its keys"
)
_JOINT_PROJECTION = Unsupported(
    "an adapter of OpenCLIP's joint query, key and value (in_proj)", "train it with the layers of transformers' CLIP"
)

# Pattern of the whole key (* is any text) -> what the tensor is. Patterns of roles are * and a literal ending. If
# several unsupported kinds fit a file, the first is reported.
TENSOR_KINDS: Mapping[str, Role | Ignored | Unsupported] = {
    # peft; the adapter's name is removed before (lora_A.default.weight)
    "*.lora_A.weight": Role("down"),
    "*.lora_B.weight": Role("up"),
    "*.lora_magnitude_vector": Role("magnitude"),
    "*.lora_magnitude_vector.weight": Role("magnitude"),
    "*.ia3_l": Role("ia3_l"),
    "*.oft_R.weight": Role("oft_R"),
    "*.boft_R": Role("boft_R"),
    "*.boft_s": Role("boft_s"),
    # diffusers before peft
    "*.lora.down.weight": Role("down"),
    "*.lora.up.weight": Role("up"),
    "*.lora_linear_layer.down.weight": Role("down"),
    "*.lora_linear_layer.up.weight": Role("up"),
    "*_lora.down.weight": Role("down"),  # in attention processors
    "*_lora.up.weight": Role("up"),
    # kohya, LyCORIS, OneTrainer, ED-LoRA
    "*.lora_down.weight": Role("down"),
    "*.lora_mid.weight": Role("mid"),
    "*.lora_up.weight": Role("up"),
    "*.alpha": Role("alpha"),
    "*.scalar": Role("scalar"),
    "*.dora_scale": Role("dora_scale"),
    "*.hada_w1_a": Role("w1_a"),
    "*.hada_w1_b": Role("w1_b"),
    "*.hada_w2_a": Role("w2_a"),
    "*.hada_w2_b": Role("w2_b"),
    "*.hada_t1": Role("t1"),
    "*.hada_t2": Role("t2"),
    **{f"*.lokr_{name}": Role(f"lokr_{name}") for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "*.oft_blocks": Role("oft_blocks"),
    "*.rescale": Role("rescale"),
    "*.on_input": Role("on_input"),  # IA3; its factors end with .weight
    **{f"*.{name}.weight": Role(name) for name in ("a1", "a2", "b1", "b2")},  # GLoRA
    "*.diff": Role("diff"),
    "*.diff_b": Role("diff_b"),
    "*.set_weight": Role("set_weight"),
    "*.w_norm": Role("w_norm"),
    "*.b_norm": Role("b_norm"),
    # Custom Diffusion of diffusers
    "*.processor": Ignored("stands for a layer that keeps its own weights", if_empty=True),
    # unsupported
    "model.diffusion_model.*": _CHECKPOINT,
    "first_stage_model.*": _CHECKPOINT,
    "cond_stage_model.*": _CHECKPOINT,
    "conditioner.*": _CHECKPOINT,
    "*.oft_diag": _OLD_OFT,
    "*.oft_r": _OLD_OFT,
    "*.bm.weight": _GLORA_CORE,
    "*.reshape_weight": _RESHAPED,
    "*.lora_B.bias": _LORA_BIAS,
    "*.lora_up.bias": _LORA_BIAS,
    "*.modules_to_save.*": _MODULES_TO_SAVE,
    "*.token_adapter.*": _TOKENS_OF_PEFT,
    "*.lora_diag": _VARIANT,
    "*.lora_diag.*": _VARIANT,
    "*.vera_lambda_*": _VARIANT,
    "bundle_emb.*": _BUNDLE,
    "image_proj.*": _IP_ADAPTER,
    "ip_adapter.*": _IP_ADAPTER,
    "control_model*": _CONTROLNET,
    "controlnet_*": _CONTROLNET,
    "lllite_*": _CONTROLNET,
    **{
        f"{start}{kind}{middle}blocks*": _TRANSFORMER
        for start in ("lora_unet_", "lora_transformer_", "transformer.", "diffusion_model.", "model.diffusion_model.")
        for kind in ("", "single_", "double_", "joint_")
        for middle in ("", "transformer_")
    },
    "lora_te3_*": _TRANSFORMER,
    "lora_prior_*": _PRIOR,
    "*resblocks*in_proj*": _JOINT_PROJECTION,
    "text_model.*": _UNNAMED_ENCODER,
    "lycoris_text_model_*": _UNNAMED_ENCODER,
    "base_model.model.text_model.*": _UNNAMED_ENCODER,
}
