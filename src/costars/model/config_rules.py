"""Which settings of a checkpoint's configuration files are supported.

Every setting is used by the class that is built from it, or must have a value that the loop implies (the tables below),
or is known to say nothing about pictures, or is noted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers import schedulers as diffusers_schedulers

from costars.errors import ModelError
from costars.model.families import SCHEDULER, TEXT_ENCODER_2, UNET, VAE, Family
from costars.model.file_kinds import check_channels
from costars.model.schedulers import EDM_CLASSES, SUPPORTED_CLASSES

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """A setting that must have one of these values where it is given; advice says what another value means."""

    key: str
    allowed: tuple[Any, ...]
    advice: str


_OTHER_INPUT = "the UNet reads something beside text; use a text-to-image checkpoint"
_OTHER_ATTENTION = "its attention is not that of Stable Diffusion; use another checkpoint"
_QUANTIZED = Rule("quantization_config", (None,), "use a release in float16, bfloat16 or float32")
_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")
UNET_RULES = (
    Rule("_class_name", ("UNet2DConditionModel",), "use a text-to-image checkpoint"),
    Rule(
        "time_cond_proj_dim",
        (None,),
        "guidance-distilled UNets (time_cond_proj_dim) are not supported; use the base model with an LCM LoRA as style",
    ),
    Rule("class_embed_type", (None,), _OTHER_INPUT),
    Rule("num_class_embeds", (None,), _OTHER_INPUT),
    Rule("encoder_hid_dim", (None,), _OTHER_INPUT),
    Rule("encoder_hid_dim_type", (None,), _OTHER_INPUT),
    Rule("class_embeddings_concat", (False,), _OTHER_INPUT),
    Rule("attention_type", ("default",), _OTHER_INPUT),
    Rule("only_cross_attention", (False,), _OTHER_ATTENTION),
    Rule("mid_block_only_cross_attention", (None, False), _OTHER_ATTENTION),
    Rule("dual_cross_attention", (False,), _OTHER_ATTENTION),
    Rule("cross_attention_norm", (None,), _OTHER_ATTENTION),
    Rule("mid_block_type", ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None), _OTHER_ATTENTION),
    _QUANTIZED,
)
VAE_RULES = (
    Rule("_class_name", ("AutoencoderKL",), "set checkpoint.vae to an AutoencoderKL of its family"),
    Rule("in_channels", (3,), "a picture has three channels; use another VAE"),
    Rule("out_channels", (3,), "a picture has three channels; use another VAE"),
    Rule("shift_factor", (None, 0), "SD and SDXL scale latents without it; use a VAE of the model's family"),
    _QUANTIZED,
)
TEXT_ENCODER_RULES = (
    Rule("model_type", ("clip_text_model", "clip"), "use a checkpoint with CLIP's text encoder"),
    _QUANTIZED,
)
SCHEDULER_RULES = (
    Rule("prediction_type", ("epsilon", "v_prediction"), "use another checkpoint, or set checkpoint.prediction"),
    Rule("use_flow_sigmas", (False,), "flow matching is not supported; use another checkpoint"),
    Rule("use_dynamic_shifting", (False,), "flow matching is not supported; use another checkpoint"),
    Rule("timestep_type", ("discrete",), "use a checkpoint with discrete timesteps, or with an EDM scheduler"),
    Rule("thresholding", (False,), "it is for models of pixels, not of latents; set it to false"),
    Rule(
        "variance_type",
        (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        "learned variances are not supported; use another checkpoint",
    ),
)
# Settings that say nothing about pictures: notes of the libraries and of the training (diffusers' EMAModel).
_INERT = frozenset(
    ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
)


def check_configs(configs: Mapping[str, Config], family: Family, what: str) -> tuple[str, ...]:
    """Notes about settings that are not known; configs are {part: its configuration}, VAE optional.

    what names the checkpoint. Raises ModelError for a setting that is not supported, with its file and its value.
    """
    notes = [*check_unet_config(configs[UNET], family, what), *check_scheduler_config(configs[SCHEDULER], what)]
    if VAE in configs:
        notes += check_vae_config(configs[VAE], what)
        sizes = _read_size(configs[UNET], "in_channels", 4, what), _read_size(configs[VAE], "latent_channels", 4, what)
        check_channels(*sizes, what)
    encoders = {spec.name: configs[spec.name] for spec in family.text_encoders}
    for part, config in encoders.items():
        _check(config, TEXT_ENCODER_RULES, part, what)
    width = sum(_read_size(config, "hidden_size", 512, what) for config in encoders.values())
    reads = _read_size(configs[UNET], "cross_attention_dim", 1280, what)
    if width != reads:
        raise ModelError(
            f"{what}: its UNet reads text of width {reads}, but its text encoders give {width}; use a whole "
            f"{family.title} checkpoint"
        )
    if TEXT_ENCODER_2 in encoders:
        _check_size_ids(configs[UNET], encoders[TEXT_ENCODER_2], what)
    return tuple(notes)


def check_unet_config(config: Config, family: Family, what: str) -> list[str]:
    """Notes about a UNet's settings; see `check_configs`."""
    addition = "text_time" if any(e.pooled for e in family.text_encoders) else None
    added = Rule("addition_embed_type", (addition,), _OTHER_INPUT)
    _check(config, (*UNET_RULES, added), UNET, what)
    _read_size(config, "sample_size", 64, what)
    if addition and config.get("addition_embed_type") is None:
        raise ModelError(
            f"{what}: unet/config.json lacks addition_embed_type, which {family.title} needs; {added.advice}"
        )
    for key in ("down_block_types", "up_block_types"):
        other = [kind for kind in config.get(key) or () if kind not in _BLOCKS]
        if other:
            _refuse(UNET, key, other[0], ", ".join(_BLOCKS), _OTHER_ATTENTION, what)
    if config.get("out_channels", 4) != config.get("in_channels", 4):
        check_channels(_read_size(config, "in_channels", 4, what), _read_size(config, "out_channels", 4, what), what)
    return list(_list_unknown(config, signature(UNet2DConditionModel).parameters, UNET, what))


def check_vae_config(config: Config, what: str) -> list[str]:
    """Notes about a VAE's settings; see `check_configs`."""
    _check(config, VAE_RULES, VAE, what)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if (mean is None) != (std is None):
        key, other = ("latents_std", "latents_mean") if mean is None else ("latents_mean", "latents_std")
        raise ModelError(f"{what}: vae/config.json has {key} without {other}; give both, or none")
    channels = config.get("latent_channels", 4)
    for key, value in (("latents_mean", mean), ("latents_std", std)):
        if value is not None and not _is_vector(value, channels, positive=key == "latents_std"):
            _refuse(
                VAE, key, value, f"{channels} finite numbers, those of latents_std positive", "use another VAE", what
            )
    return list(_list_unknown(config, signature(AutoencoderKL).parameters, VAE, what))


def check_scheduler_config(config: Config, what: str) -> list[str]:
    """Notes about a scheduler's settings; see `check_configs`."""
    kind = config.get("_class_name")
    classes = (*sorted(SUPPORTED_CLASSES), *EDM_CLASSES)
    if kind not in classes:
        _refuse(SCHEDULER, "_class_name", kind, ", ".join(classes), "set it to one of them", what)
    _check(config, SCHEDULER_RULES, SCHEDULER, what)
    _check_zero_snr(config, kind, what)
    # diffusers writes the settings of the scheduler that a configuration was made from into it as well.
    known = {key for name in classes for key in signature(getattr(diffusers_schedulers, name)).parameters}
    return list(_list_unknown(config, known, SCHEDULER, what))


def _check_zero_snr(config: Config, kind: Any, what: str) -> None:
    """Raises ModelError for a class that ignores the noise levels which the network was trained with."""
    key = "rescale_betas_zero_snr"
    if (
        config.get(key)
        and kind not in EDM_CLASSES
        and key not in signature(getattr(diffusers_schedulers, kind)).parameters
    ):
        advice = "set its _class_name to DDIMScheduler or EulerDiscreteScheduler"
        _refuse(SCHEDULER, key, config[key], f"False with {kind}", advice, what)


def _check_size_ids(unet: Config, encoder: Config, what: str) -> None:
    """Raises ModelError unless the UNet reads the pooled text and six size ids (the refiner reads five)."""
    pooled = _read_size(encoder, "projection_dim", 512, what)
    reads, each = (
        _read_size(unet, key, 0, what) for key in ("projection_class_embeddings_input_dim", "addition_time_embed_dim")
    )
    if reads != pooled + 6 * each:
        is_refiner = reads == pooled + 5 * each
        kind = "is an SDXL refiner" if is_refiner else "its UNet reads other size ids than SDXL's"
        raise ModelError(
            f"{what}: {kind} (projection_class_embeddings_input_dim {reads}, want {pooled + 6 * each}), which is not "
            "supported; use the SDXL base checkpoint"
        )


def _check(config: Config, rules: Sequence[Rule], part: str, what: str) -> None:
    for rule in rules:
        value = config.get(rule.key, rule.allowed[0])
        if value not in rule.allowed:
            allowed = ", ".join(repr(value) for value in rule.allowed)
            _refuse(part, rule.key, value, allowed, rule.advice, what)


def _refuse(part: str, key: str, value: Any, allowed: str, advice: str, what: str) -> None:
    file = "scheduler_config.json" if part == SCHEDULER else "config.json"
    raise ModelError(f"{what}: {part}/{file} has {key} {str(value)[:60]!r}, supported: {allowed}; {advice}")


def _list_unknown(config: Config, known: Collection[str], part: str, what: str) -> Iterator[str]:
    unknown = sorted(k for k, v in config.items() if k not in known and k not in _INERT and k[:1] != "_" and v)
    if unknown:
        yield f"{what}: settings of its {part} that are not known and not used: {', '.join(unknown)}"


def _read_size(config: Config, key: str, default: int, what: str) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(
            f"{what}: {key} {str(value)[:60]!r} in a config.json: want one whole number; use another checkpoint"
        )
    return value


def _is_vector(value: Any, length: Any, *, positive: bool) -> bool:
    """Whether the value is a list of this many finite numbers."""
    if not isinstance(value, list | tuple) or len(value) != length:
        return False
    return all(isinstance(v, int | float) and abs(v) < math.inf and (v > 0 or not positive) for v in value)
