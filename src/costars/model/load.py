"""Checkpoints from disk: a diffusers folder or a single file becomes a Model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers import schedulers as diffusers_schedulers
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from costars.errors import ModelError
from costars.files.safetensors_header import read_header, sha256_of
from costars.model.components import lack_of_weights, part_of
from costars.model.hub import Source
from costars.model.model import Facts, Model
from costars.model.offload import Residence, chosen_tier, size_of
from costars.model.single_file import (
    CONFIGS,
    DECODER,
    check_config,
    family_of,
    module_of,
    noise_of,
    prediction_of,
    read_single,
    tokenizer_of,
)
from costars.model.text_encoder import TextEncoder, TextEncoders

SD_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SDXL_PARTS = (*SD_PARTS, "text_encoder_2", "tokenizer_2")
SD2_TEXT = 1024  # width of the text that SD 2's UNet reads; SD 1.5's reads 768
SD2_UNSAID = (
    "model {!r}: a file of SD 2 does not say what it predicts; taken as epsilon (its 512 px release). "
    "If the picture is noise (768 px release) set checkpoint.prediction: v_prediction and size: [768, 768]"
)
ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


@dataclass(frozen=True)
class Parts:
    """How the parts of one checkpoint are had, wherever they lie."""

    family: str
    module: Callable[[Any, str], Any]
    tokenizer: Callable[[str], CLIPTokenizer]
    scheduler: dict[str, Any]
    sha256: Callable[[], str]
    notes: tuple[str, ...] = ()


def load_model(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    max_rows: int = 0,
    segmenter: str = "attention",
    memory: str = "full",
) -> Model:
    """Load a checkpoint; raises ModelError if it is not a whole one of a family that costars knows.

    memory is a tier, or auto for the first that the device has room for.
    """
    _hush_libraries()
    in_one_file = source.path.is_file()
    if source.config is not None and not in_one_file:
        raise ModelError(f"model {source.name!r}: is a folder with its own configuration; leave checkpoint.config out")
    mend = "fetch it again" if source.config is None else "fetch it again, or give another checkpoint.config"
    with _told_in_one_line(f"model {source.name!r}", mend):
        parts = _single(source, dtype) if in_one_file else _folder(source, dtype)
        unet, vae = parts.module(UNet2DConditionModel, "unet"), _vae(source, parts, dtype)
        encoders = _encoders(parts)
        scheduler = _scheduler(parts.scheduler | _predicting(source.prediction))
        sha256 = parts.sha256()
    if dtype == torch.float16 and vae.config["force_upcast"]:
        vae = vae.to(torch.float32)  # SDXL's own decoder overflows in float16; its config says so
    if source.tiles:
        vae.enable_tiling()
    channels = {int(unet.config[k]) for k in ("in_channels", "out_channels")} | {int(vae.config["latent_channels"])}
    if len(channels) > 1:
        raise ModelError(
            f"model {source.name!r}: UNet and decoder have {sorted(channels)} latent channels, as an inpainting model "
            "or another family's decoder has; use a text-to-image checkpoint and a decoder of its family"
        )
    if unet.config["time_cond_proj_dim"]:
        raise ModelError(
            f"model {source.name!r}: its UNet is told the guidance (time_cond_proj_dim), as distilled LCM checkpoints "
            "are, and costars does not tell it; use the base model with an LCM LoRA as style"
        )
    cell_px = 2 ** (len(vae.config["block_out_channels"]) - 1)
    side = int(unet.config["sample_size"]) * cell_px
    facts = Facts(
        name=source.name,
        family=parts.family,
        sha256=sha256,
        size_px=(side, side),
        cell_px=cell_px,
        latent_channels=int(unet.config["in_channels"]),
        segmenter=segmenter,
        parts_sha256=_parts_sha256(source, parts.family),
        notes=parts.notes,
    )
    modules = (unet, vae, *(e.module for e in encoders))
    residence = Residence(chosen_tier(memory, size_of(*modules), device), device)
    for module in modules:
        residence.settle(module)
    return Model(unet, vae, encoders, scheduler, facts, device, dtype, max_rows, residence)


@contextmanager
def _told_in_one_line(what: str, mend: str) -> Iterator[None]:
    """Whatever the libraries raise over damaged files in the block, and they raise many kinds, is a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:300].removesuffix("; fetch it again")
        raise ModelError(f"{what}: cannot be loaded ({line}); {mend}") from error


def _hush_libraries() -> None:
    """They tell of configurations, types and long prompts that costars deals with itself; errors are still told."""
    transformers_logging.disable_progress_bar()
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()


def _folder(source: Source, dtype: torch.dtype) -> Parts:
    folder = source.path
    family = _check_folder(folder, source.name)
    for part in ("unet", *_text(family), *(() if source.vae else ("vae",))):
        if lack := lack_of_weights(folder / part):
            raise ModelError(
                f"model {source.name!r}: its {part} {lack}; use a release with .safetensors, or fetch it again"
            )
    return Parts(
        family=family,
        module=lambda kind, part: part_of(kind, folder / part, dtype),
        tokenizer=lambda part: CLIPTokenizer.from_pretrained(folder / part, local_files_only=True),
        scheduler=json.loads((folder / "scheduler" / "scheduler_config.json").read_text()),
        sha256=lambda: sha256_of(folder / "unet"),
    )


def _single(source: Source, dtype: torch.dtype) -> Parts:
    if source.path.suffix != ".safetensors":
        raise ModelError(
            f"model {source.name!r}: a single file must be .safetensors, {source.path.suffix or 'this'} may hold code; "
            "convert it, or use another release"
        )
    tensors = read_single(source.path)
    family = family_of(tensors, source.name)
    if source.vae is None and not any(key.startswith(DECODER) for key in tensors):
        raise ModelError(
            f"model {source.name!r}: there is no decoder in the file; set checkpoint.vae to one of its family"
        )
    if source.config is not None:
        check_config(source.config, ("unet", "vae", *_text(family)))
    config = source.config or CONFIGS / family
    told = json.loads((config / "scheduler" / "scheduler_config.json").read_text())
    predicts = prediction_of(tensors)
    unsaid = family == "sd2" and not (predicts or source.prediction or source.config)
    return Parts(
        family=family,
        module=lambda kind, part: module_of(kind, tensors, part, config, dtype),
        tokenizer=lambda part: tokenizer_of(config / part),
        scheduler=told | _predicting(predicts) | noise_of(tensors),
        sha256=lambda: sha256_of(source.path),
        notes=(SD2_UNSAID.format(source.name),) if unsaid else (),
    )


def _encoders(parts: Parts) -> TextEncoders:
    return tuple(
        TextEncoder(
            name,
            parts.tokenizer(name.replace("text_encoder", "tokenizer")),
            parts.module(ENCODERS[name], name),
        )
        for name in _text(parts.family)
    )


def _text(family: str) -> tuple[str, ...]:
    return tuple(ENCODERS) if family == "sdxl" else ("text_encoder",)


def _vae(source: Source, parts: Parts, dtype: torch.dtype) -> AutoencoderKL:
    """The checkpoint's own decoder, or the one that replaces it: a diffusers folder or a single file."""
    if source.vae is None:
        return parts.module(AutoencoderKL, "vae")
    path = _vae_of(source.vae)
    mend = "want the folder of a diffusers decoder, or its .safetensors file"
    with _told_in_one_line(f"checkpoint.vae {str(source.vae)!r}", mend):
        if path.is_dir():
            return part_of(AutoencoderKL, path, dtype)
        read_header(path)  # here, so that what is wrong with it is told as the decoder's
        return module_of(AutoencoderKL, read_single(path), "vae", source.config or CONFIGS / parts.family, dtype)


def _vae_of(path: Path) -> Path:
    """The decoder's own folder where a whole checkpoint's was given."""
    return path / "vae" if (path / "vae").is_dir() else path


def _parts_sha256(source: Source, family: str) -> dict[str, str]:
    """Of what the model's own hash leaves out: a folder's other parts, and a decoder that replaces its own."""
    apart = {} if source.path.is_file() else {f"model.{part}": source.path / part for part in (*_text(family), "vae")}
    if source.vae is not None:
        apart.pop("model.vae", None)
        apart["checkpoint.vae"] = _vae_of(source.vae)
    return {place: sha256_of(path) for place, path in apart.items()}


def _check_folder(folder: Path, name: str) -> str:
    """The family of a whole folder; raises ModelError where a part is missing."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"model {name!r}: no model_index.json there; want 'builtin', a diffusers folder, a .safetensors file "
            "or a hub id"
        )
    try:
        listed = dict(json.loads(index.read_text()))
    except (ValueError, TypeError):
        raise ModelError(f"model {name!r}: its model_index.json is damaged; fetch it again") from None
    pair = "text_encoder_2" in listed
    missing = [p for p in (SDXL_PARTS if pair else SD_PARTS) if p not in listed or not (folder / p).is_dir()]
    if missing:
        kind = "an SDXL" if pair else "an SD"
        raise ModelError(
            f"model {name!r}: {kind} folder has {', '.join(SDXL_PARTS if pair else SD_PARTS)}, "
            f"but {', '.join(missing)} is missing; use a whole checkpoint, or fetch it again"
        )
    if pair:
        return "sdxl"
    config = folder / "unet" / "config.json"
    width = json.loads(config.read_text()).get("cross_attention_dim") if config.is_file() else None
    return "sd2" if width == SD2_TEXT else "sd15"


def _predicting(prediction: str | None) -> dict[str, str]:
    return {} if prediction is None else {"prediction_type": prediction}


def _scheduler(config: dict[str, Any]) -> Any:
    kind = getattr(diffusers_schedulers, str(config.get("_class_name")), None)
    if kind is None:
        raise LookupError(f"diffusers has no scheduler {config.get('_class_name')!r}")
    return kind.from_config(config)
