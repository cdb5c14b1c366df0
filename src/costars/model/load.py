"""Checkpoints from disk: a diffusers folder becomes a Model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers import schedulers as diffusers_schedulers
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging

from costars.errors import ModelError
from costars.model.model import Facts, Model
from costars.model.text import TextEncoders

SDXL_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


def load_sdxl(
    folder: Path, name: str, device: torch.device, dtype: torch.dtype, max_rows: int, segmenter: str
) -> Model:
    """Load an SDXL checkpoint from a diffusers folder; raises ModelError if it is not a whole one."""
    _check_folder(folder, name)
    logging.disable_progress_bar()
    try:
        unet = _part(UNet2DConditionModel, folder / "unet", dtype)
        vae = _part(AutoencoderKL, folder / "vae", dtype)
        encoders = TextEncoders(
            CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            CLIPTokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True),
            _part(CLIPTextModel, folder / "text_encoder", dtype).to(device),
            _part(CLIPTextModelWithProjection, folder / "text_encoder_2", dtype).to(device),
        )
        scheduler = _scheduler(folder / "scheduler")
    except Exception as error:  # whatever the libraries raise over a damaged folder, and they raise many kinds
        line = " ".join(str(error).split())[:300]
        raise ModelError(f"model {name!r}: cannot be loaded ({line}); fetch it again") from error
    if dtype == torch.float16 and vae.config["force_upcast"]:
        vae = vae.to(torch.float32)  # SDXL's own decoder overflows in float16; its config says so
    cell_px = 2 ** (len(vae.config["block_out_channels"]) - 1)
    side = int(unet.config["sample_size"]) * cell_px
    facts = Facts(
        name=name,
        family="sdxl",
        sha256=_hash(folder / "unet"),
        size_px=(side, side),
        cell_px=cell_px,
        latent_channels=int(unet.config["in_channels"]),
        segmenter=segmenter,
    )
    return Model(unet.to(device), vae.to(device), encoders, scheduler, facts, device, dtype, max_rows)


def _check_folder(folder: Path, name: str) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"model {name!r}: no model_index.json there; want 'builtin' or the path of an SDXL diffusers folder"
        )
    try:
        parts = dict(json.loads(index.read_text()))
    except (ValueError, TypeError):
        raise ModelError(f"model {name!r}: its model_index.json is damaged; fetch it again") from None
    missing = [p for p in SDXL_PARTS if p not in parts or not (folder / p).is_dir()]
    if missing:
        raise ModelError(
            f"model {name!r}: an SDXL folder has {', '.join(SDXL_PARTS)}, but {', '.join(missing)} is missing; "
            "use an SDXL checkpoint, or fetch it again"
        )


def _part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A module in eval mode, its weights from safetensors only. Raises LookupError if one is not in the file."""
    key = "torch_dtype" if hasattr(kind, "load_config") else "dtype"
    options = {key: dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    module, info = kind.from_pretrained(folder, **options)
    absent = sorted(k for k in info["missing_keys"] if not k.endswith("position_ids"))
    if absent:
        raise LookupError(f"the file of {folder.name} lacks {len(absent)} weights, {absent[0]} first")
    return module.eval().requires_grad_(False)


def _scheduler(folder: Path) -> Any:
    config = json.loads((folder / "scheduler_config.json").read_text())
    kind = getattr(diffusers_schedulers, str(config.get("_class_name")), None)
    if kind is None:
        raise LookupError(f"diffusers has no scheduler {config.get('_class_name')!r}")
    return kind.from_config(config)


def _hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
