"""What a key of an adapter file means: a layer of ours, and which factor of its change."""

from __future__ import annotations

import re
from collections.abc import Mapping

from costars.concepts.layer_paths import TEXT, UNET, dotted
from costars.concepts.sgm_blocks import from_sgm

PARTS = ("unet.", "text_encoder.", "text_encoder_2.")
PEFT_PREFIX = "base_model.model."

# End of a key -> what the tensor is to its layer.
ROLES: Mapping[str, str] = {
    ".lora_A.weight": "down",  # peft
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",  # peft, the adapter's own name kept
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",  # diffusers before it used peft
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",  # diffusers' first, in attention processors
    "_lora.up.weight": "up",
    ".lora_down.weight": "down",  # kohya, LyCORIS, ED-LoRA
    ".lora_up.weight": "up",
    ".hada_w1_a": "w1_a",  # LyCORIS LoHa
    ".hada_w1_b": "w1_b",
    ".hada_w2_a": "w2_a",
    ".hada_w2_b": "w2_b",
    ".alpha": "alpha",
}
# Start of a key whose dots were made underscores -> the part that it belongs to.
_FLAT: Mapping[str, str] = {
    "lora_unet_": "unet.",
    "lora_te_": "text_encoder.",
    "lora_te1_": "text_encoder.",
    "lora_te2_": "text_encoder_2.",
}
_UNET_START = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\b")
_PROCESSOR_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def read_key(key: str) -> tuple[str, str] | None:
    """(module path, role) of a key; None where it is no factor of a layer that is known here."""
    suffix = next((s for s in ROLES if key.endswith(s)), None)
    path = None if suffix is None else module_path(key.removesuffix(suffix))
    return None if suffix is None or path is None else (path, ROLES[suffix])


def module_path(stem: str) -> str | None:
    """The module path, led by its part, of a key without its role; None where it is not known."""
    for prefix, part in _FLAT.items():
        if stem.startswith(prefix):
            return _from_flat(stem.removeprefix(prefix), part)
    path = stem.replace(PEFT_PREFIX, "").replace(".processor.", ".")
    if _UNET_START.match(path):
        path = f"unet.{path}"
    part = next((p for p in PARTS if path.startswith(p)), "")
    if not part:
        return None
    own = path.removeprefix(part)
    return part + (_unet_name(own) if part == "unet." else _text_name(own))


def _from_flat(flat: str, part: str) -> str | None:
    path = dotted(flat)
    if path is None:
        return None
    if part != "unet.":
        return part + path if TEXT.fullmatch(path) else None
    known = path if UNET.fullmatch(path) else from_sgm(path)
    return part + known if known is not None and UNET.fullmatch(known) else None


def _unet_name(own: str) -> str:
    return f"{own}.0" if own.endswith(".to_out") else own


def _text_name(own: str) -> str:
    """With the level that transformers 5 took out of one encoder, and the names from before processors went."""
    start, _, last = own.rpartition(".")
    if start.endswith("self_attn"):
        own = f"{start}.{_PROCESSOR_TEXT.get(last, last)}"
    return own if own.startswith(("text_model.", "text_projection")) else f"text_model.{own}"
