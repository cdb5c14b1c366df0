"""Keys of single-file checkpoints: where each part is, and which tensors are known to be of no use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from costars.errors import ModelError
from costars.model.families import TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE, Family

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIXES = ("first_stage_model.", "vae.")
_SDXL_ENCODERS = {TEXT_ENCODER: "conditioner.embedders.0.", TEXT_ENCODER_2: "conditioner.embedders.1."}
_SD_ENCODER = "cond_stage_model."
# (start of a key, what it becomes) for names that wrappers and early programs write.
_RENAMED: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"^module\."), ""),  # torch's data-parallel wrapper
    (re.compile(r"(^|\.)_orig_mod\."), r"\1"),  # torch.compile
    # NovelAI's checkpoints, and merges of them: transformers before text_model was a level of its own.
    (re.compile(r"^(cond_stage_model\.transformer\.)(embeddings|encoder|final_layer_norm)\."), r"\1text_model.\2."),
)
# {pattern of a key: why nothing is lost without it}
UNUSED: Mapping[str, str] = {
    r"(.*\.)?model_ema\..*": "moving average of the training; the weights beside it are read",
    r"(.*\.)?embeddings\.position_ids": "always 0, 1, 2, ...",
    r"(.*\.)?logit_scale": "compares text with pictures in CLIP's training",
    r"cond_stage_model\.(transformer\.|model\.)?text_projection(\.weight)?": "pooled text, not read by SD 1.5 and 2",
    r"conditioner\.embedders\.0\.(transformer\.)?text_projection(\.weight)?": "pooled text, read of the other encoder",
    r"cond_stage_model\.model\.transformer\.resblocks\.23\..*": "SD 2 reads the layer before it",
    r"(.*\.)?attn_mask": "the causal mask, which is always the same",
    r"(cond_stage_model|conditioner\..*)\.(vision_model|visual|visual_projection)\..*": "CLIP's half for pictures",
    r"(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_(one_minus_)?alphas_cumprod|log_one_minus_alphas_cumprod)": (
        "noise levels; alphas_cumprod is compared with those that are used"
    ),
    r"(sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_\w+|lvlb_weights|logvar)": "follow from betas",
    r"(denoiser|model_sampling)\.(log_)?sigmas": "noise levels; sigmas are compared with those that are used",
    r"((first_stage_model|vae)\.)?loss\..*": "the discriminator of the VAE's training",
    r"embedding_manager\..*": "a placeholder of textual inversion, without a word in the prompt",
    r"optimizer\w*(\..*)?|lr_scheduler(\..*)?|global_step|epoch|iteration": "state of the training",
    # Quantized layers: what describes the weights, and the scale of activations in 8-bit arithmetic.
    r"(.*\.)?(scale_input|input_scale)": "the arithmetic here is not quantized",
    r"(.*\.)?(scaled_fp8|comfy_quant)": "a marker, which is read with the weights",
    r"v_pred|ztsnr|edm_mean|edm_std|edm_vpred\.sigma_(max|min)": "markers, which are read as statements",
}
_UNUSED = re.compile("|".join(f"(?:{pattern})" for pattern in UNUSED))


def rename_key(key: str) -> str:
    """The key of the first releases for a key as wrappers and early programs write it."""
    for pattern, replacement in _RENAMED:
        key = pattern.sub(replacement, key)
    return key


def rename_keys(keys: Iterable[str], what: str) -> dict[str, str]:
    """{key of the first releases: key in the file}; raises ModelError if two keys become one."""
    result: dict[str, str] = {}
    for key in keys:
        renamed = rename_key(key)
        if renamed in result:
            raise ModelError(
                f"{what}: has the tensor {renamed!r} twice, as {result[renamed]!r} and {key!r}; remove one"
            )
        result[renamed] = key
    return result


def is_unused(key: str) -> bool:
    """Whether a tensor of this key is known to be of no use (`UNUSED` gives the reasons)."""
    return _UNUSED.fullmatch(key) is not None


def part_prefixes(family: Family) -> dict[str, tuple[str, ...]]:
    """{part: starts of its keys in a single file of this family}."""
    single = len(family.text_encoders) == 1
    encoders = {e.name: (_SD_ENCODER if single else _SDXL_ENCODERS[e.name],) for e in family.text_encoders}
    return {UNET: (UNET_PREFIX,), VAE: VAE_PREFIXES, **encoders}


def list_keys(keys: Sequence[str]) -> str:
    """Keys for an error message: "3 tensors, the first is 'a.weight'"."""
    return f"{len(keys)} tensor{'s' if len(keys) > 1 else ''}, the first is {keys[0]!r}"
