"""Creates checkpoints and LoRAs of full size with random weights, which are as fast as trained ones."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers import schedulers as diffusers_schedulers
from PIL import Image
from safetensors.torch import save_file

from costars.model.clip_tokenizer import load_tokenizer
from costars.model.families import FAMILIES, attention_layers
from costars.model.model import Model, ModelInfo
from costars.model.offload import Offload
from costars.model.single_file import CONFIGS
from costars.model.text_encoder import TextEncoder
from costars.studio import DTYPES

RANK, CELL_PX = 16, 8
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # projections that a LoRA adapts in every attention layer
# The same architecture with fewer and narrower layers, for a CPU.
_NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": (32, 64, 64),
        "norm_num_groups": 8,
        "attention_head_dim": (2, 4, 4),
        "cross_attention_dim": 64,
        "transformer_layers_per_block": (1, 1, 2),
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 128,
    },
    "vae": {"block_out_channels": (16, 16, 16, 16), "norm_num_groups": 8},
    "text_encoder": _NARROW,
    "text_encoder_2": {**_NARROW, "projection_dim": 32},
}


def parse_options(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, torch.device, str]:
    """Add the options that all full-size scripts share; return (options, device, dtype). Exits with 2 without a GPU."""
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--family", choices=("sdxl", "sd15"), default="sdxl")
    parser.add_argument("--size", type=int, help="px per side; default: the family's own size, 128 with --tiny")
    parser.add_argument("--tiny", action="store_true", help="a small model of the same architecture, for a CPU")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not on_gpu and not options.tiny:
        parser.error("full size needs a CUDA device, and torch finds none; use --tiny")
    if options.tiny and options.family != "sdxl":
        parser.error("--tiny is an SDXL model; omit --family")
    options.size = options.size or (128 if options.tiny else {"sdxl": 1024, "sd15": 512}[options.family])
    torch.manual_seed(0)
    return options, torch.device("cuda", 0) if on_gpu else torch.device("cpu"), "bfloat16" if on_gpu else "float32"


def describe_run(options: argparse.Namespace, device: torch.device, dtype: str) -> dict[str, Any]:
    """Return what was measured and where."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    facts = {"family": options.family, "tiny": options.tiny, "size_px": options.size, "dtype": dtype}
    return {**facts, "device": name, "torch": torch.__version__}


def format_heading(facts: dict[str, Any]) -> str:
    """Format the facts of a run in one line."""
    tiny = " (tiny)" if facts["tiny"] else ""
    return f"{facts['family']}{tiny}, {facts['size_px']} px, {facts['dtype']}, {facts['device']}"


def build_modules(family: str, tiny: bool, size_px: int, device: torch.device, dtype: str) -> dict[str, Any]:
    """Build the modules of a family ("sdxl" or "sd15") with random weights, by their names in a diffusers folder."""
    config, small = CONFIGS / family, TINY if tiny else {}

    def read_config(part: str) -> dict[str, Any]:
        return {**json.loads((config / part / "config.json").read_text()), **small.get(part, {})}

    with device:
        unet = UNet2DConditionModel.from_config({**read_config("unet"), "sample_size": size_px // CELL_PX})
        parts = {"unet": unet, "vae": AutoencoderKL.from_config(read_config("vae"))}
        for encoder in FAMILIES[family].text_encoders:
            text_config = transformers.CLIPTextConfig(**read_config(encoder.name))
            parts[encoder.name] = getattr(transformers, encoder.model_class)(text_config)
    return {name: module.to(DTYPES[dtype]) for name, module in parts.items()}


def build_scheduler(family: str) -> Any:
    """Build the family's own scheduler."""
    config = json.loads((CONFIGS / family / "scheduler" / "scheduler_config.json").read_text())
    return getattr(diffusers_schedulers, config["_class_name"]).from_config(config)


def build_model(name: str, family: str, size_px: int, modules: dict[str, Any], device: torch.device) -> Model:
    """Build the model that `load_model` would load from a folder with these modules, without any file."""
    unet, vae = modules["unet"], modules["vae"]
    if unet.dtype == torch.float16 and vae.config["force_upcast"]:
        vae.to(torch.float32)  # as load_model does
    for module in modules.values():
        module.eval().requires_grad_(False)
    encoders = tuple(
        TextEncoder(e, load_tokenizer(CONFIGS / family / e.tokenizer), modules[e.name])
        for e in FAMILIES[family].text_encoders
    )
    info = ModelInfo(
        name=name,
        family=family,
        sha256="",
        size_px=(size_px, size_px),
        cell_px=CELL_PX,
        latent_channels=unet.config["in_channels"],
        segmenter="attention",
    )
    return Model(
        unet=unet,
        vae=vae,
        encoders=encoders,
        scheduler=build_scheduler(family),
        info=info,
        device=device,
        dtype=unet.dtype,
        offload=Offload("full", device),
    )


def save_checkpoint(folder: Path, family: str, tiny: bool, size_px: int, device: torch.device, dtype: str) -> None:
    """Write a diffusers folder of a family ("sdxl" or "sd15") for images of size_px per side."""
    parts = build_modules(family, tiny, size_px, device, dtype)
    tokenizers = {e.tokenizer: load_tokenizer(CONFIGS / family / e.tokenizer) for e in FAMILIES[family].text_encoders}
    rest: dict[str, Any] = {"scheduler": build_scheduler(family), **tokenizers}
    if family == "sdxl":
        pipeline: Any = StableDiffusionXLPipeline(**parts, **rest)
    else:
        off = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **rest, **off)
    pipeline.save_pretrained(folder)


def save_loras(folder: Path, unet: UNet2DConditionModel, count: int = 5) -> None:
    """Write count LoRAs of every attention layer, 0.safetensors and so on, into a folder."""
    for i in range(count):
        tensors = {}
        for name, layer in attention_layers(unet):
            for part in ATTENTION:
                rows, columns = layer.get_submodule(part).weight.shape
                tensors[f"unet.{name}.{part}.lora_A.weight"] = 0.01 * torch.randn(RANK, columns)
                tensors[f"unet.{name}.{part}.lora_B.weight"] = 0.01 * torch.randn(rows, RANK)
        save_file(tensors, folder / f"{i}.safetensors")


def save_masks(folder: Path, k: int, size_px: int) -> list[Path]:
    """Write k masks side by side that together fill the image."""
    paths = []
    for i in range(k):
        left, right = (CELL_PX * round(j * size_px / k / CELL_PX) for j in (i, i + 1))
        mask = Image.new("L", (size_px, size_px))
        mask.paste(255, (left, 0, right, size_px))
        paths.append(folder / f"mask_{i}_of_{k}.png")
        mask.save(paths[-1])
    return paths
