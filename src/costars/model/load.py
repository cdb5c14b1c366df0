"""Load a checkpoint, a diffusers folder or a single file, as a Model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers import schedulers as diffusers_schedulers
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from costars.errors import ModelError
from costars.files.safetensors_header import compute_sha256, read_header
from costars.model.checkpoint_parts import CheckpointParts, open_folder, open_single_file, prediction_config
from costars.model.components import load_component
from costars.model.config_values import check_files, check_types, check_values
from costars.model.families import UNET, VAE, Family
from costars.model.hub import Source
from costars.model.model import Model, ModelInfo
from costars.model.offload import Offload, choose_tier, count_weight_bytes
from costars.model.single_file import CONFIGS, load_module, read_tensors
from costars.model.text_encoder import TextEncoder, TextEncoders


def load_model(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    max_rows: int = 0,
    segmenter: str = "attention",
    memory: str = "full",
) -> Model:
    """Load a checkpoint; raises ModelError if it is incomplete, damaged or of an unknown family.

    memory is a tier of `offload.TIERS`, or auto for the first that fits the device.
    """
    _silence_libraries()
    in_one_file = source.path.is_file()
    if source.config is not None and not in_one_file:
        raise ModelError(f"model {source.name!r}: is a folder with its own configuration; leave checkpoint.config out")
    remedy = "download it again" if source.config is None else "download it again, or give another checkpoint.config"
    with _one_line_errors(f"model {source.name!r}", remedy):
        for folder in (source.path, source.vae, source.config):
            check_files(folder)
        parts = open_single_file(source, dtype) if in_one_file else open_folder(source, dtype)
        unet, vae = parts.load_module(UNet2DConditionModel, UNET), _load_vae(source, parts, dtype)
        encoders = _load_text_encoders(parts)
        scheduler = _make_scheduler(parts.scheduler | prediction_config(source.prediction))
        check_values(unet, vae, encoders, scheduler)
        info = _describe(source, parts, unet, vae, segmenter)
    if dtype == torch.float16 and vae.config["force_upcast"]:
        vae = vae.to(torch.float32)  # SDXL's VAE overflows in float16; its configuration states this
    if source.tiles:
        vae.enable_tiling()
    _check_architecture(unet, vae, source.name)
    modules = (unet, vae, *(e.module for e in encoders))
    offload = Offload(choose_tier(memory, count_weight_bytes(*modules), device), device)
    for module in modules:
        offload.place(module)
    return Model(
        unet=unet,
        vae=vae,
        encoders=encoders,
        scheduler=scheduler,
        info=info,
        device=device,
        dtype=dtype,
        max_rows=max_rows,
        offload=offload,
    )


@contextmanager
def _one_line_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn any exception that the libraries raise for damaged files in the block into a ModelError of one line."""
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        # tokenizers is written in Rust: a damaged file may make it panic, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        line = " ".join(str(error).split())[:300].removesuffix("; fetch it again").removesuffix("; download it again")
        raise ModelError(f"{what}: cannot be loaded ({line}); {remedy}") from error


def _silence_libraries() -> None:
    """Hide warnings about configurations, dtypes and long prompts that costars handles itself; errors are shown."""
    transformers_logging.disable_progress_bar()
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()


def _load_text_encoders(parts: CheckpointParts) -> TextEncoders:
    return tuple(
        TextEncoder(
            spec,
            parts.load_tokenizer(spec.tokenizer),
            parts.load_module(getattr(transformers, spec.model_class), spec.name),
        )
        for spec in parts.family.text_encoders
    )


def _load_vae(source: Source, parts: CheckpointParts, dtype: torch.dtype) -> AutoencoderKL:
    """The checkpoint's VAE, or the one that replaces it: a diffusers folder or a single file."""
    if source.vae is None:
        return parts.load_module(AutoencoderKL, VAE)
    path = _find_vae(source.vae)
    remedy = "want the folder of a diffusers VAE, or its .safetensors file"
    with _one_line_errors(f"checkpoint.vae {str(source.vae)!r}", remedy):
        if path.is_dir():
            return load_component(AutoencoderKL, path, dtype)
        read_header(path)  # without ModelError, so that the error names checkpoint.vae
        config = source.config or CONFIGS / parts.family.name
        return load_module(AutoencoderKL, read_tensors(path), VAE, config, dtype)


def _find_vae(path: Path) -> Path:
    """The VAE's folder, if the folder of a whole checkpoint is given."""
    return path / VAE if (path / VAE).is_dir() else path


def _make_scheduler(config: dict[str, Any]) -> Any:
    kind = getattr(diffusers_schedulers, str(config.get("_class_name")), None)
    if kind is None:
        raise LookupError(f"diffusers has no scheduler {config.get('_class_name')!r}")
    check_types("scheduler", kind, config)
    return kind.from_config(config)


def _check_architecture(unet: UNet2DConditionModel, vae: AutoencoderKL, name: str) -> None:
    """Raises ModelError for UNets that need other inputs than latents and text."""
    channels = {int(unet.config[k]) for k in ("in_channels", "out_channels")} | {int(vae.config["latent_channels"])}
    if len(channels) > 1:
        raise ModelError(
            f"model {name!r}: UNet and VAE have different latent channels ({sorted(channels)}), as in an inpainting "
            "model or with the VAE of another family; use a text-to-image checkpoint and a VAE of its family"
        )
    if unet.config["time_cond_proj_dim"]:
        raise ModelError(
            f"model {name!r}: guidance-distilled UNets (time_cond_proj_dim) are not supported; "
            "use the base model with an LCM LoRA as style"
        )


def _describe(
    source: Source, parts: CheckpointParts, unet: UNet2DConditionModel, vae: AutoencoderKL, segmenter: str
) -> ModelInfo:
    cell_px = 2 ** (len(vae.config["block_out_channels"]) - 1)
    side = int(unet.config["sample_size"]) * cell_px
    return ModelInfo(
        name=source.name,
        family=parts.family.name,
        sha256=parts.hash_unet(),
        size_px=(side, side),
        cell_px=cell_px,
        latent_channels=int(unet.config["in_channels"]),
        segmenter=segmenter,
        parts_sha256=_hash_other_parts(source, parts.family),
        notes=parts.notes,
    )


def _hash_other_parts(source: Source, family: Family) -> dict[str, str]:
    """Hashes of weight files that the UNet's hash does not cover: a folder's other parts, and a replaced VAE."""
    parts = () if source.path.is_file() else (*(e.name for e in family.text_encoders), VAE)
    paths = {f"model.{part}": source.path / part for part in parts}
    if source.vae is not None:
        paths.pop("model.vae", None)
        paths["checkpoint.vae"] = _find_vae(source.vae)
    return {place: compute_sha256(path) for place, path in paths.items()}
