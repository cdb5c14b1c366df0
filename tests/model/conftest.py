"""Tiny checkpoints of every family, and their weights under the names of the first releases."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from costars.model.families import SDXL
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.model import Model

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE = (
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def _unet_key(key: str, attended: Mapping[str, bool], layers: int) -> str:
    """One weight's name in the first releases (model.diffusion_model.*)."""
    block = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key)
    middle = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key)
    if block:
        way, i, kind, j, rest = block.group(1), int(block.group(2)), block.group(3), int(block.group(4)), block.group(5)
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (i + 1)}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{(layers + 1) * i + layers}.{2 if attended[f'up{i}'] else 1}.{rest}"
        number = (layers + 1) * i + j + (1 if way == "down" else 0)
        stem = f"{'input' if way == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}"
    elif middle:
        kind, j, rest = middle.group(1), int(middle.group(2)), middle.group(3)
        stem = f"middle_block.{1 if kind == 'attentions' else 2 * j}"
    else:
        stem, _, last = key.rpartition(".")
        return f"{_OUTER[stem]}.{last}"
    if kind == "resnets":
        name, _, last = rest.rpartition(".")
        rest = f"{_RESNET[name]}.{last}"
    return f"{stem}.{rest}"


def _vae_key(key: str, depth: int) -> str:
    key = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)", r"encoder.down.\1.block.\2", key)
    key = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample", key)
    up = re.match(r"decoder\.up_blocks\.(\d+)\.(resnets\.(\d+)|upsamplers\.0)(.*)", key)
    if up:
        inner = f"block.{up.group(3)}" if up.group(3) else "upsample"
        key = f"decoder.up.{depth - 1 - int(up.group(1))}.{inner}{up.group(4)}"
    for ours, theirs in _VAE:
        key = re.sub(rf"(^|\.){re.escape(ours)}(?=\.)", rf"\1{theirs}", key)
    return key


def _open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for full, value in weights.items():
        key = full.removeprefix("text_model.")
        layer = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)$", key)
        if layer:
            stem, name, last = f"transformer.resblocks.{layer.group(1)}", layer.group(2), layer.group(3)
            if name == "self_attn.q_proj":
                parts = [weights[k] for k in _three(weights, layer.group(1), last)]
                out[f"{stem}.attn.in_proj_{last}"] = torch.cat(parts)
            elif name in _OPEN_CLIP:
                out[f"{stem}.{_OPEN_CLIP[name]}.{last}"] = value
        elif key == "text_projection.weight":
            out["text_projection"] = value.T.contiguous()
        elif key == "embeddings.position_embedding.weight":
            out["positional_embedding"] = value
        elif key == "embeddings.token_embedding.weight":
            out["token_embedding.weight"] = value
        else:
            out[key.replace("final_layer_norm", "ln_final")] = value
    return out


def _three(weights: Mapping[str, Tensor], layer: str, last: str) -> list[str]:
    ends = [f"encoder.layers.{layer}.self_attn.{p}_proj.{last}" for p in "qkv"]
    return [next(k for k in weights if k.removeprefix("text_model.") == end) for end in ends]


@pytest.fixture(scope="session")
def open_clip() -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """A text encoder's weights by the names of OpenCLIP."""
    return _open_clip


@pytest.fixture(scope="session")
def first_release() -> Callable[[Any], dict[str, Tensor]]:
    """A model's weights as one file of the first releases would hold them."""

    def of(model: Any) -> dict[str, Tensor]:
        layers = int(model.unet.config["layers_per_block"])
        attended = {f"up{i}": "CrossAttn" in kind for i, kind in enumerate(model.unet.config["up_block_types"])}
        out = {f"model.diffusion_model.{_unet_key(k, attended, layers)}": v for k, v in model.unet.state_dict().items()}
        for key, value in model.vae.state_dict().items():
            name = _vae_key(key, len(model.vae.config["block_out_channels"]))
            linear = ".mid.attn_1." in name and value.ndim == 2
            out[f"first_stage_model.{name}"] = value[:, :, None, None] if linear else value
        first, *rest = model.encoders
        prefix = "conditioner.embedders.0.transformer." if rest else "cond_stage_model.transformer."
        for key, value in first.module.state_dict().items():
            out[f"{prefix}text_model.{key.removeprefix('text_model.')}"] = value
        for encoder in rest:
            for key, value in _open_clip(encoder.module.state_dict()).items():
                out[f"conditioner.embedders.1.model.{key}"] = value
        return {k: v.contiguous().clone() for k, v in out.items()}

    return of


@pytest.fixture(scope="session")
def sd15(sd15_folder: Path) -> Model:
    """The random SD 1.5 checkpoint, loaded."""
    return load_model(Source("mine", sd15_folder), torch.device("cpu"), torch.float32)


@pytest.fixture
def linked(golden: Path, tmp_path: Path) -> Path:
    """The tiny SDXL checkpoint as links to its parts, so that one can be replaced."""
    folder = tmp_path / "model"
    folder.mkdir()
    for part in SDXL.folders:
        (folder / part).symlink_to(golden / "tiny-sdxl" / part)
    shutil.copy(golden / "tiny-sdxl" / "model_index.json", folder)
    return folder


@pytest.fixture
def copy_part() -> Callable[[Path, str], Path]:
    """Replace the link to one part by a copy of it."""

    def copy(folder: Path, part: str) -> Path:
        source = (folder / part).resolve()
        (folder / part).unlink()
        return Path(shutil.copytree(source, folder / part))

    return copy


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """A private copy of a folder."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / f"copy-of-{folder.name}"))
