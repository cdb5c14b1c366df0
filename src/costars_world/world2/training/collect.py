"""Turning the files of a run into a folder in SDXL's format, as diffusers and costars load it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from costars_world.world2.training.autoencoder import build_vae
from costars_world.world2.training.base import BaseRecipe, build_base
from costars_world.world2.training.base_process import load_base
from costars_world.world2.training.export import part_of, read_state
from costars_world.world2.training.files import NETS, PARTS
from costars_world.world2.training.judge import build_judge
from costars_world.world2.training.segmenter import SegmenterNet
from costars_world.world2.training.world import World

INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.42.1",
    "force_zeros_for_empty_prompt": False,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def collect(files: Path, weights: Path, world: World) -> None:
    """Write weights/model, weights/segmenter and weights/judge from the files that a run left.

    Raises FileNotFoundError where a file is missing and RuntimeError where tensors do not fit the model.
    """
    folder = weights / "model"
    parts, facts = read_state(files / PARTS)
    if "words" in facts:
        world = replace(world, words=tuple(facts["words"].split()))
    base = build_base(world, folder, BaseRecipe())
    load_base(base, files)
    vae = build_vae()
    vae.load_state_dict(part_of(parts, "vae."))
    vae.register_to_config(scaling_factor=1.0)
    for name, part in base.trained().items():
        _save_half(part, folder / name)
    _save_half(vae, folder / "vae")
    base.scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    if (files / NETS).exists():
        _collect_nets(files, weights, world)


def _save_half(part: nn.Module, folder: Path) -> None:
    """Write a part's configuration and float16 weights."""
    halved = nn.Module.half(copy.deepcopy(part))
    halved.save_pretrained(folder)  # type: ignore[operator]
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def _collect_nets(files: Path, weights: Path, world: World) -> None:
    state, facts = read_state(files / NETS)
    attributes = json.loads(facts["attributes"]) if "attributes" in facts else world.attributes
    nets: Mapping[str, nn.Module] = {"segmenter": SegmenterNet(len(attributes)), "judge": build_judge(attributes)}
    for name, net in nets.items():
        tensors: dict[str, Tensor] = part_of(state, f"{name}.")
        if not tensors:
            continue
        net.load_state_dict(tensors)
        (weights / name).mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, weights / name / "model.safetensors")
