"""The numbered blocks of the sgm UNet, in which kohya names SDXL's layers, as diffusers' blocks.

Both count the same layers: each level has two of them and then a sampler, which sgm numbers through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LAYERS_PER_BLOCK = 2  # of SD 1.5, 2 and SDXL alike

_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d{1,3})\.(?:(\d)\.)?(.+)")
_OUTSIDE: Mapping[str, str] = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_RESNET: Mapping[str, str] = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_MIDDLE = ("resnets.0", "attentions.0", "resnets.1")
_KINDS = ("resnets", "attentions")


def from_sgm(path: str) -> str | None:
    """input_blocks.4.1.proj_in as down_blocks.1.attentions.0.proj_in; None for what is no layer of sgm."""
    if path in _OUTSIDE:
        return _OUTSIDE[path]
    found = _BLOCK.fullmatch(path)
    if found is None:
        return None
    side, number, place, rest = found[1], int(found[2]), found[3], found[4]
    if side == "middle_block":
        return _inside(f"mid_block.{_MIDDLE[number]}", rest) if place is None and number < len(_MIDDLE) else None
    block, layer = divmod(number - 1 if side == "input_blocks" else number, LAYERS_PER_BLOCK + 1)
    if block < 0 or place is None:
        return None
    level = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{block}"
    # The sampler stands last, and second where its block has no attention: its own name tells it.
    if layer == LAYERS_PER_BLOCK and (side, rest) in (("input_blocks", "op"), ("output_blocks", "conv")):
        return f"{level}.{'down' if rest == 'op' else 'up'}samplers.0.conv"
    return _inside(f"{level}.{_KINDS[int(place)]}.{layer}", rest) if int(place) < len(_KINDS) else None


def _inside(owner: str, rest: str) -> str | None:
    inner = _RESNET.get(rest) if "resnets" in owner else rest
    return None if inner is None else f"{owner}.{inner}"
