"""A checkpoint in one .safetensors file, in the layout of the first SD and SDXL releases."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from costars.errors import ModelError, ReadError
from costars.files.regular_file import is_there
from costars.files.safetensors_header import read_header
from costars.model.config_values import read_config
from costars.model.families import KNOWN_TITLES, SDXL, TEXT_ENCODER, TEXT_ENCODER_2, Family, detect_family

CONFIGS = Path(__file__).parent / "configs"
VAE_PREFIX = "first_stage_model."
_CROSS_KEY = "model.diffusion_model.input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
_ENCODER_PREFIXES = {TEXT_ENCODER: "conditioner.embedders.0.", TEXT_ENCODER_2: "conditioner.embedders.1."}
_V_PREDICTION, _ZERO_SNR = "v_pred", "ztsnr"  # marker keys of checkpoints of these kinds


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the file; raises ModelError if it is incomplete or not safetensors."""
    read_header(path, ModelError)
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def read_family(tensors: Mapping[str, Tensor], name: str) -> Family:
    """The family of a single file, from its keys and sizes; raises ModelError if it is unknown or incomplete."""
    cross_key = next((tensors[k] for i in (1, 4) if (k := _CROSS_KEY.format(i)) in tensors), None)
    if cross_key is None:
        raise ModelError(
            f"model {name!r}: no Stable Diffusion UNet in this file (its first key is "
            f"{next(iter(tensors), 'nothing')!r}); want a whole {KNOWN_TITLES} checkpoint, or a diffusers folder"
        )
    width = cross_key.shape[1]
    has_second = SDXL.text_encoders[1].single_file_key in tensors or width == SDXL.text_width
    family = detect_family([TEXT_ENCODER_2] if has_second else [TEXT_ENCODER], width)
    for encoder in family.text_encoders:
        if not any(key.startswith(encoder.single_file_key) for key in tensors):
            raise ModelError(f"model {name!r}: a text encoder is missing in the file; use a whole checkpoint")
    return family


def read_prediction(tensors: Mapping[str, Tensor]) -> str | None:
    """The prediction_type that the file states; None if it states none."""
    return "v_prediction" if _V_PREDICTION in tensors else None


def read_noise_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Scheduler settings that the file states: zero terminal SNR (Lin et al. 2023, arXiv 2305.08891), or none."""
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if _ZERO_SNR in tensors else {}


def load_module(kind: Any, tensors: dict[str, Tensor], part: str, config: Path, dtype: torch.dtype) -> Any:
    """A part of the checkpoint in eval mode and without gradients, built from a configuration folder.

    Raises LookupError for missing weights.
    """
    if kind in (CLIPTextModel, CLIPTextModelWithProjection):
        # diffusers tells the encoders apart by key; without the other encoder's keys it cannot take the wrong one.
        others = tuple(prefix for name, prefix in _ENCODER_PREFIXES.items() if name != part)
        own = {k: v for k, v in tensors.items() if not k.startswith(others)}
        module = create_diffusers_clip_model_from_ldm(
            kind, own, subfolder=part, config=str(config), torch_dtype=dtype, local_files_only=True
        )
    else:
        assert kind in (UNet2DConditionModel, AutoencoderKL)
        module = kind.from_single_file(
            tensors, config=str(config), subfolder=part, torch_dtype=dtype, local_files_only=True
        )
    missing = [name for name, value in module.named_parameters() if value.is_meta]
    if missing:
        raise LookupError(f"the file lacks {len(missing)} weights of the {part}, the first is {missing[0]}")
    return module.eval().requires_grad_(False)


def check_config(folder: Path, parts: Sequence[str]) -> None:
    """Raises ModelError unless the folder has the configuration of these parts and of the scheduler."""
    for file in (*(f"{part}/config.json" for part in parts), "scheduler/scheduler_config.json"):
        try:
            read_config(folder / file)
        except ReadError:
            problem = "cannot be read" if is_there(folder / file) else "is missing"
            raise ModelError(
                f"checkpoint.config {str(folder)!r}: {file} {problem}; give the .json files of a whole diffusers "
                "folder, or leave checkpoint.config out"
            ) from None


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a configuration folder; with CLIP's vocabulary if the folder has none."""
    if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    config = read_config(folder / "tokenizer_config.json")
    vocabulary, merges = _clip_vocabulary()
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, pad_token=config["pad_token"], model_max_length=config["model_max_length"]
    )


@cache
def _clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """CLIP's vocabulary and merges (Radford et al. 2021; MIT licence): every byte, then every merge, in order."""
    with gzip.open(CONFIGS / "clip_merges.txt.gz", "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file]
    symbols = _byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}, merges


def _byte_symbols() -> list[str]:
    """A printable character for each of the 256 bytes, printable bytes first (GPT-2's alphabet)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
