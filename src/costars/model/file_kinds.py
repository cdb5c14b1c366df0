"""What a .safetensors file is that is no checkpoint of a supported family, by its keys and shapes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from costars.errors import ModelError
from costars.files.safetensors_header import Entry
from costars.model.families import FAMILIES, KNOWN_TITLES, TEXT_ENCODER, TEXT_ENCODER_2, UNET

_WHOLE = f"want a whole {KNOWN_TITLES} checkpoint, or a diffusers folder"
_AS_CONCEPT = "use it as a concept: of the cast, or as style, and give its base checkpoint as model"
_SAVE_WHOLE = "save it with its text encoders and VAE as one checkpoint (ComfyUI: Save Checkpoint), or " + _WHOLE


@dataclass(frozen=True)
class FileKind:
    """A kind of file: what it is, a pattern that one of its keys matches from the start, and what can be done."""

    title: str
    pattern: str
    advice: str = _WHOLE


# Files without a UNet in the layout of the first releases. The first kind with a key is the answer.
OTHER_FILES = (
    FileKind("a textual inversion", r"(emb_params|string_to_param|<[^>]+>$|clip_[lg]$)", _AS_CONCEPT),
    FileKind("an IP-Adapter", r"(image_proj\.|ip_adapter\.)"),
    FileKind(
        "a LoRA or another adapter",
        r"(lora_(unet|te\d?)_|.*\.(lora_(up|down|A|B|linear_layer)|lora\.(up|down)|hada_w[12]_[ab]|lokr_w[12]\w*|oft_blocks"
        r"|dora_scale)\b)",
        _AS_CONCEPT,
    ),
    FileKind("Custom Diffusion weights", r".*to_[kv]_custom_diffusion", _AS_CONCEPT),
    FileKind(
        "a ControlNet",
        r"(control_model\.|.*(controlnet_cond_embedding|input_hint_block|controlnet_down_blocks)\b)",
        "use it under controls:, as a diffusers folder",
    ),
    FileKind("a motion module (AnimateDiff)", r".*motion_modules\."),
    FileKind("a Stable Cascade checkpoint", r"(.*\.)?(clip_txt_mapper|clip_txt_pooled_mapper|effnet_mapper\.0)\b"),
    FileKind("an SD 3 checkpoint", r"(.*\.)?joint_blocks\.\d+\."),
    FileKind("a FLUX checkpoint, or one of its design", r"(.*\.)?(double_blocks|single_blocks)\.\d+\."),
    FileKind("a diffusion transformer", r"(.*\.)?(transformer_blocks|double_layers)\.\d+\.(attn|scale_shift_table)"),
    FileKind("a diffusion transformer", r"(model\.diffusion_model\.)?(blocks|layers)\.\d+\.(attn|self_attn|attention)"),
    FileKind("a UNet in diffusers' layout", r"(unet\.)?down_blocks\.\d+\.(resnets|attentions)\.", _SAVE_WHOLE),
    FileKind("a UNet without its prefix", r"(diffusion_model\.)?input_blocks\.\d+\.", _SAVE_WHOLE),
    FileKind(
        "a VAE",
        r"((first_stage_model|vae)\.)?(encoder|decoder)\.(conv_in|down|up|down_blocks|up_blocks)\b",
        "set it as checkpoint.vae",
    ),
    FileKind("a text encoder", r"(.*\.)?(text_model|encoder\.block\.\d+|resblocks\.\d+)\."),
)
# Files with a UNet of the first releases that reads or draws something else.
OTHER_MODELS = (
    FileKind("an SDXL refiner", r"conditioner\.embedders\.0\.model\.", "use the SDXL base checkpoint"),
    FileKind("a video model", r"(.*time_stack|.*time_mixer|conditioner\.embedders\.0\.open_clip\.)"),
    FileKind("an SD 2 unCLIP checkpoint", r"(noise_augmentor|embedder\.model\.visual)\b"),
    FileKind("a depth-to-image checkpoint", r"depth_model\."),
    FileKind("a checkpoint with a ControlNet in it", r"control_model\.", "use the checkpoint and controls: apart"),
    FileKind("a GLIGEN checkpoint", r".*(position_net|\.fuser\.)"),
    FileKind("a checkpoint with motion modules (AnimateDiff)", r".*motion_modules\."),
    FileKind(
        "a text encoder of another kind (Chinese or multilingual)", r"cond_stage_model\.(roberta|transformation)\b"
    ),
)
# {latent channels that the UNet reads: what it is}
CHANNELS: Mapping[int, str] = {
    5: "a depth-to-image",
    7: "an upscaling",
    8: "an instruct-pix2pix (editing)",
    9: "an inpainting",
    16: "an SD 3 or FLUX style (16 channels)",
}

_OTHER_DENOISERS = frozenset(("transformer", "prior", "decoder", "unet_1", "transformer_2"))
_USED_PARTS = frozenset(part for family in FAMILIES.values() for part in family.folders)
# {part of a diffusers folder: why nothing is lost without it}
_INERT_PARTS: Mapping[str, str] = {
    "safety_checker": "looks at finished pictures",
    "feature_extractor": "prepares pictures for the safety checker",
}


def describe_other_file(keys: Mapping[str, Entry], what: str) -> str:
    """The error message for a file that has no UNet in the layout of the first releases; what names the file."""
    if any(key.startswith("model.diffusion_model.input_blocks.") for key in keys):
        return f"{what}: its UNet has none of the layers that read text; {_WHOLE}"
    if kind := _find(OTHER_FILES, keys):
        return f"{what}: is {kind.title}, not a checkpoint; {kind.advice}"
    first = next(iter(keys), "nothing")
    return f"{what}: no Stable Diffusion UNet in this file (its first key is {first!r}); {_WHOLE}"


def check_model_kind(keys: Mapping[str, Entry], what: str) -> None:
    """Raises ModelError for a file with a UNet of the first releases that is not a text-to-image model."""
    if kind := _find(OTHER_MODELS, keys):
        raise ModelError(f"{what}: is {kind.title}, which is not supported; {kind.advice}")


def check_channels(read: int, latents: int, what: str) -> None:
    """Raises ModelError for a UNet that reads another number of channels than a latent has."""
    if read != latents:
        kind = f"{CHANNELS[read]} model: its UNet" if read in CHANNELS else "no text-to-image model: its UNet"
        raise ModelError(
            f"{what}: is {kind} reads {read} channels, and the VAE's latents have {latents}; use the text-to-image "
            "checkpoint that it was made from, and a VAE of its family"
        )


def check_model_index(index: Mapping[str, object], present: Collection[str], what: str) -> tuple[str, ...]:
    """Notes about parts that are not used; index is a folder's model_index.json, present are its parts.

    Raises ModelError for the folder of another kind of model.
    """
    pipeline = index.get("_class_name", "unknown")
    if UNET not in present and _OTHER_DENOISERS & set(present):
        raise ModelError(f"{what}: is a folder of {pipeline}, which is not supported; {_WHOLE}")
    if index.get("requires_aesthetics_score") or (TEXT_ENCODER_2 in present and TEXT_ENCODER not in present):
        raise ModelError(f"{what}: is an SDXL refiner, which is not supported; use the SDXL base checkpoint")
    if index.get("is_cosxl_edit"):
        raise ModelError(f"{what}: is an instruct-pix2pix (editing) model, which is not supported; {_WHOLE}")
    unused = sorted(set(present) - _USED_PARTS - set(_INERT_PARTS))
    return (f"{what}: parts of {pipeline} that are not used: {', '.join(unused)}",) if unused else ()


def _find(kinds: tuple[FileKind, ...], keys: Mapping[str, Entry]) -> FileKind | None:
    return next((kind for kind in kinds if any(re.match(kind.pattern, key) for key in keys)), None)
