"""Translates the numbered blocks of the sgm UNet, which kohya uses for SDXL, to the blocks of diffusers.

Both UNets have the same layers. Each level has two layers and a sampler; sgm numbers them consecutively.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LAYERS_PER_BLOCK = 2  # in SD 1.5, SD 2 and SDXL

_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d{1,3})\.(?:(\d)\.)?(.+)")
_OUTER_LAYERS: Mapping[str, str] = {
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_RESNET_LAYERS: Mapping[str, str] = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_MIDDLE = ("resnets.0", "attentions.0", "resnets.1")
_KINDS = ("resnets", "attentions")


def from_sgm(path: str) -> str | None:
    """Turn input_blocks.4.1.proj_in into down_blocks.1.attentions.0.proj_in; None if it is not an sgm layer."""
    if path in _OUTER_LAYERS:
        return _OUTER_LAYERS[path]
    match = _BLOCK.fullmatch(path)
    if match is None:
        return None
    side, number, index, rest = match[1], int(match[2]), match[3], match[4]
    if side == "middle_block":
        return _layer_path(f"mid_block.{_MIDDLE[number]}", rest) if index is None and number < len(_MIDDLE) else None
    block, layer = divmod(number - 1 if side == "input_blocks" else number, LAYERS_PER_BLOCK + 1)
    if block < 0 or index is None:
        return None
    level = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{block}"
    # The index of a sampler depends on whether its block has attention, so it is recognized by its name.
    if layer == LAYERS_PER_BLOCK and (side, rest) in (("input_blocks", "op"), ("output_blocks", "conv")):
        return f"{level}.{'down' if rest == 'op' else 'up'}samplers.0.conv"
    return _layer_path(f"{level}.{_KINDS[int(index)]}.{layer}", rest) if int(index) < len(_KINDS) else None


def _layer_path(owner: str, rest: str) -> str | None:
    name = _RESNET_LAYERS.get(rest) if "resnets" in owner else rest
    return None if name is None else f"{owner}.{name}"
