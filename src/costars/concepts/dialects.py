"""The key dialects of adapter files: which program writes which keys.

A new dialect is one line in DIALECTS. The endings of keys are listed in tensor_kinds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

PARTS = ("unet.", "text_encoder.", "text_encoder_2.")  # every module path in costars starts with one of these

TOKENS = "tokens."  # tokens.<part>.<token>: embeddings in a file written by costars
WEIGHTS = "weights."  # weights.<module path>: full weights in a file written by costars
CHANGES = "changes."  # changes.<kind>.<role>.<module path>: whole changes in a file written by costars
PEFT = "base_model.model."


class Dialect(NamedTuple):
    """Keys that one program writes."""

    marker: str  # text that a key in this dialect contains
    writer: str  # name of the format
    replacement: str | None = None  # what the marker becomes in a module path; None if it is no part of the path
    underscored: bool = False  # the key starts with the marker, and the path after it has underscores for dots
    leading: bool = False  # the marker counts only at the start of a key


# In order of precedence: the first line whose marker is in any key names the format of the file.
DIALECTS: tuple[Dialect, ...] = (
    Dialect(TOKENS, "costars"),
    Dialect(WEIGHTS, "costars"),
    Dialect(CHANGES, "costars"),
    Dialect("_custom_diffusion", "Custom Diffusion"),
    Dialect(".dora_scale", "DoRA"),
    Dialect(".lora_magnitude_vector", "DoRA"),
    Dialect(".hada_w1_a", "LyCORIS LoHa"),
    Dialect(".lokr_w1", "LyCORIS LoKr"),
    Dialect(".oft_", "OFT"),
    Dialect(".boft_", "BOFT"),
    Dialect(".on_input", "IA3"),
    Dialect(".ia3_l", "IA3"),
    Dialect(".a1.weight", "LyCORIS GLoRA"),
    Dialect(".w_norm", "trained norms"),
    Dialect("lora_unet_", "kohya", "unet.", underscored=True),
    Dialect("lora_te_", "kohya", "text_encoder.", underscored=True),
    Dialect("lora_te1_", "kohya", "text_encoder.", underscored=True),
    Dialect("lora_te2_", "kohya", "text_encoder_2.", underscored=True),
    Dialect("lora_te", "kohya"),  # text encoders of other base models
    Dialect("oft_unet_", "kohya", "unet.", underscored=True),
    Dialect("lycoris_", "LyCORIS", "unet.", underscored=True),  # of LyCORIS without sd-scripts, for the wrapped model
    Dialect(PEFT, "peft", ""),
    Dialect("model.diffusion_model.", "ComfyUI", "unet.", leading=True),
    Dialect("diffusion_model.", "ComfyUI", "unet.", leading=True),
    Dialect("text_encoders.clip_l.transformer.", "ComfyUI", "text_encoder.", leading=True),
    Dialect("text_encoders.clip_g.transformer.", "ComfyUI", "text_encoder_2.", leading=True),
    Dialect("clip_l.", "OneTrainer", "text_encoder.", leading=True),
    Dialect("clip_g.", "OneTrainer", "text_encoder_2.", leading=True),
    Dialect(".lora_", "diffusers"),
    Dialect(".lora.", "diffusers"),
    Dialect("_lora.", "diffusers"),
)


def detect_format(keys: Iterable[str]) -> str:
    """Name of the format of a file with these keys; "unknown" if no dialect fits."""
    key_list = list(keys)
    return next((d.writer for d in DIALECTS if any(_contains(key, d) for key in key_list)), "unknown")


def _contains(key: str, dialect: Dialect) -> bool:
    return key.startswith(dialect.marker) if dialect.leading else dialect.marker in key
