"""Kinds of file that are known and cannot be applied: each is refused by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from costars.errors import ConceptError

_EXTRACT = "merge it into its base model and extract a plain LoRA (sd-scripts, networks/extract_lora_from_models.py)"
_LORA = "use a LoRA of the same character"

# (what one of its keys looks like, what it is, what to do); the first that fits is told.
REFUSED: tuple[tuple[str, str, str], ...] = (
    (
        r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.",
        "a whole checkpoint",
        "name it as the scene's model",
    ),
    (r"\.lora_mid\.weight$", "a LoCon with a Tucker core (lora_mid)", _EXTRACT),
    (r"\.hada_t[12]$", "a LoHa with a Tucker core (hada_t1)", _EXTRACT),
    (r"\.(dora_scale|lora_magnitude_vector(\..*)?)$", "a DoRA, which also rescales the base weights", _EXTRACT),
    (r"\.lokr_", "a LoKr", _EXTRACT),
    (r"\.boft_", "a BOFT", _EXTRACT),
    (r"^oft_|\.oft_", "an OFT or BOFT", _EXTRACT),
    (r"\.(on_input|ia3_l(\..*)?)$", "an (IA)^3", _EXTRACT),
    (r"\.[ab][12m]\.weight$", "a GLoRA", _EXTRACT),
    (r"\.diff(_b)?$", "a full difference of weights, not a low rank one", _EXTRACT),
    (r"\.scalar$", "a LyCORIS with a scalar for each layer", "train it without use_scalar, or " + _EXTRACT),
    (r"\.[wb]_norm$", "a LyCORIS with trained norms", "train it without train_norm"),
    (r"^bundle_emb\.", "a LoRA with words bundled into it", "take them apart and use the LoRA"),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter", _LORA),
    (r"^(control_model|controlnet_|lllite_)", "a ControlNet", _LORA),
    (
        r"^(lora_unet_|lora_transformer_|transformer\.|diffusion_model\.)(single_|double_|joint_)?(transformer_)?blocks"
        r"|^lora_te3_",
        "made for a transformer (FLUX, SD 3 and their like)",
        "use one made for SD 1.5, SD 2 or SDXL",
    ),
    (
        r"^(base_model\.model\.)?text_model\.",
        "an adapter of a text encoder that does not say of which",
        "put text_encoder. or text_encoder_2. before its keys",
    ),
)  # fmt: skip


def refuse(keys: Iterable[str], source: str) -> None:
    """Raise ConceptError if a key tells that the file is of a kind that is known and not applied."""
    listed = list(keys)
    for pattern, what, mend in REFUSED:
        key = next((k for k in listed if re.search(pattern, k)), None)
        if key is not None:
            raise ConceptError(f"{source}: is {what}, as {key!r} shows, which costars cannot apply; {mend}")
