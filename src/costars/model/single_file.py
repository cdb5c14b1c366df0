"""A checkpoint in one .safetensors file, in the layout of the first SD and SDXL releases."""

from __future__ import annotations

import gzip
import json
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

from costars.errors import ModelError
from costars.files.safetensors_header import read_header

CONFIGS = Path(__file__).parent / "configs"
_CONTEXT = "model.diffusion_model.input_blocks.{}.1.transformer_blocks.0.attn2.to_k.weight"
_FIRST, _SECOND = "conditioner.embedders.0.", "conditioner.embedders.1."
DECODER = "first_stage_model."
_SECOND_ENCODER = f"{_SECOND}model.ln_final.weight"
_V_PREDICTION, _ZERO_SNR = "v_pred", "ztsnr"  # marks that checkpoints of these kinds carry
_FAMILIES = {768: "sd15", 1024: "sd2", 2048: "sdxl"}  # width of the text that the UNet reads


def read_single(path: Path) -> dict[str, Tensor]:
    """All tensors of the file; raises ModelError if it is not whole, or not what its name says."""
    read_header(path, ModelError)
    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def family_of(tensors: Mapping[str, Tensor], name: str) -> str:
    """Which family a single file is of, by its layers; raises ModelError for one that costars does not know."""
    context = next((tensors[k] for i in (1, 4) if (k := _CONTEXT.format(i)) in tensors), None)
    if context is None:
        raise ModelError(
            f"model {name!r}: no Stable Diffusion UNet in this file (it holds {next(iter(tensors), 'nothing')!r}); "
            "want a whole SD 1.5, SD 2 or SDXL checkpoint, or a diffusers folder"
        )
    if _SECOND_ENCODER in tensors and any(k.startswith(_FIRST) for k in tensors):
        return "sdxl"
    family = "sdxl" if _SECOND_ENCODER in tensors else _FAMILIES.get(context.shape[1], "sd15")
    if family == "sdxl" or not any(k.startswith("cond_stage_model.") for k in tensors):
        raise ModelError(f"model {name!r}: its text encoders are not all in the file; use a whole checkpoint")
    return family


def prediction_of(tensors: Mapping[str, Tensor]) -> str | None:
    """What the file says its UNet predicts; None where it says nothing."""
    return "v_prediction" if _V_PREDICTION in tensors else None


def noise_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the file says of its noise, in the words of diffusers' schedulers: down to none of the picture left in it
    (Lin et al. 2023, arXiv 2305.08891)."""
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if _ZERO_SNR in tensors else {}


def module_of(kind: Any, tensors: dict[str, Tensor], part: str, config: Path, dtype: torch.dtype) -> Any:
    """A part of the checkpoint in eval mode, built as the configuration folder says.

    Raises LookupError for missing weights.
    """
    if kind in (CLIPTextModel, CLIPTextModelWithProjection):
        other = _FIRST if part == "text_encoder_2" else _SECOND  # told apart by their names, not by their widths
        own = {k: v for k, v in tensors.items() if not k.startswith(other)}
        module = create_diffusers_clip_model_from_ldm(
            kind, own, subfolder=part, config=str(config), torch_dtype=dtype, local_files_only=True
        )
    else:
        assert kind in (UNet2DConditionModel, AutoencoderKL)
        module = kind.from_single_file(
            tensors, config=str(config), subfolder=part, torch_dtype=dtype, local_files_only=True
        )
    absent = [name for name, value in module.named_parameters() if value.is_meta]
    if absent:
        raise LookupError(f"the file lacks {len(absent)} weights of the {part}, {absent[0]} first")
    return module.eval().requires_grad_(False)


def check_config(folder: Path, parts: Sequence[str]) -> None:
    """Raises ModelError where a folder does not say how these parts and the scheduler are built."""
    for file in (*(f"{part}/config.json" for part in parts), "scheduler/scheduler_config.json"):
        try:
            json.loads((folder / file).read_text())
        except (OSError, ValueError) as error:
            what = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read"
            raise ModelError(
                f"checkpoint.config {str(folder)!r}: its {file} {what}; give the .json files of a whole diffusers "
                "folder, or leave checkpoint.config out"
            ) from None


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a configuration folder; CLIP's own words where the folder brings none."""
    if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    told = json.loads((folder / "tokenizer_config.json").read_text())
    vocabulary, merges = _clip_words()
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, pad_token=told["pad_token"], model_max_length=told["model_max_length"]
    )


@cache
def _clip_words() -> tuple[dict[str, int], list[tuple[str, ...]]]:
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
