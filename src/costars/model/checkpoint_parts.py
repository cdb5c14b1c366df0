"""Open a checkpoint, a diffusers folder or a single file, and read its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from costars.errors import ModelError, ReadError
from costars.files.regular_file import is_there
from costars.files.safetensors_header import compute_sha256
from costars.model.components import find_weights_problem, load_component
from costars.model.config_values import read_config
from costars.model.families import TEXT_ENCODER_2, UNET, VAE, Family, detect_family
from costars.model.hub import Source
from costars.model.single_file import (
    CONFIGS,
    VAE_PREFIX,
    check_config,
    load_module,
    load_tokenizer,
    read_family,
    read_noise_config,
    read_prediction,
    read_tensors,
)

UNKNOWN_PREDICTION = (
    "model {!r}: a single file of SD 2 does not state its prediction type; epsilon is assumed (the 512 px release). "
    "If pictures are noise (768 px release), set checkpoint.prediction: v_prediction and size: [768, 768]"
)


@dataclass(frozen=True, kw_only=True)
class CheckpointParts:
    """How to read the parts of one checkpoint; scheduler is its scheduler's configuration."""

    family: Family
    load_module: Callable[[Any, str], Any]
    load_tokenizer: Callable[[str], CLIPTokenizer]
    scheduler: dict[str, Any]
    hash_unet: Callable[[], str]
    notes: tuple[str, ...] = ()


def open_folder(source: Source, dtype: torch.dtype) -> CheckpointParts:
    """Open a diffusers folder; raises ModelError if a part or its weights are missing."""
    folder = source.path
    family = _check_folder(folder, source.name)
    for part in (UNET, *(e.name for e in family.text_encoders), *(() if source.vae else (VAE,))):
        if problem := find_weights_problem(folder / part):
            raise ModelError(
                f"model {source.name!r}: its {part} {problem}; use a release with .safetensors, or download it again"
            )
    return CheckpointParts(
        family=family,
        load_module=lambda kind, part: load_component(kind, folder / part, dtype),
        load_tokenizer=lambda part: CLIPTokenizer.from_pretrained(folder / part, local_files_only=True),
        scheduler=_read_scheduler_config(folder),
        hash_unet=lambda: compute_sha256(folder / UNET),
    )


def open_single_file(source: Source, dtype: torch.dtype) -> CheckpointParts:
    """Open a single file; raises ModelError if it is not .safetensors or a part is missing."""
    if source.path.suffix != ".safetensors":
        raise ModelError(
            f"model {source.name!r}: a single file must be .safetensors, {source.path.suffix or 'this'} can hold code; "
            "convert it, or use another release"
        )
    tensors = read_tensors(source.path)
    family = read_family(tensors, source.name)
    if source.vae is None and not any(key.startswith(VAE_PREFIX) for key in tensors):
        raise ModelError(f"model {source.name!r}: the file has no VAE; set checkpoint.vae to one of its family")
    if source.config is not None:
        check_config(source.config, (UNET, VAE, *(e.name for e in family.text_encoders)))
    config = source.config or CONFIGS / family.name
    prediction = read_prediction(tensors)
    unknown = family.prediction is None and not (prediction or source.prediction or source.config)
    return CheckpointParts(
        family=family,
        load_module=lambda kind, part: load_module(kind, tensors, part, config, dtype),
        load_tokenizer=lambda part: load_tokenizer(config / part),
        scheduler=_read_scheduler_config(config) | prediction_config(prediction) | read_noise_config(tensors),
        hash_unet=lambda: compute_sha256(source.path),
        notes=(UNKNOWN_PREDICTION.format(source.name),) if unknown else (),
    )


def prediction_config(prediction: str | None) -> dict[str, str]:
    """Scheduler settings for a prediction type; empty for None."""
    return {} if prediction is None else {"prediction_type": prediction}


def _read_scheduler_config(folder: Path) -> dict[str, Any]:
    return read_config(folder / "scheduler" / "scheduler_config.json")


def _check_folder(folder: Path, name: str) -> Family:
    """The family of a complete folder; raises ModelError if a part is missing."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"model {name!r}: no model_index.json there; want 'builtin', a diffusers folder, a .safetensors file "
            "or a hub id"
        )
    try:
        listed = read_config(index)
    except ReadError:
        raise ModelError(f"model {name!r}: its model_index.json is damaged; download it again") from None
    family = detect_family(listed, None if TEXT_ENCODER_2 in listed else _read_text_width(folder))
    missing = [part for part in family.folders if part not in listed or not (folder / part).is_dir()]
    if missing:
        raise ModelError(
            f"model {name!r}: a folder of {family.title} has {', '.join(family.folders)}, "
            f"but {', '.join(missing)} is missing; use a whole checkpoint, or download it again"
        )
    return family


def _read_text_width(folder: Path) -> int | None:
    config = folder / UNET / "config.json"
    width = read_config(config).get("cross_attention_dim") if is_there(config) else None
    return width if isinstance(width, int) else None
