"""Translates the layers of OpenCLIP's text encoder, which SDXL's original code uses, to those of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

_BLOCK = re.compile(r"(?:model\.)?(?:transformer\.)?resblocks\.(\d{1,3})\.(.+)")
_LAYERS: Mapping[str, str] = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}


def from_open_clip(path: str) -> str | None:
    """Turn transformer.resblocks.3.mlp.c_fc into text_model.encoder.layers.3.mlp.fc1; None for any other layer.

    The joint projection of query, key and value (attn.in_proj) is not one layer of transformers.
    """
    match = _BLOCK.fullmatch(path)
    layer = None if match is None else _LAYERS.get(match[2])
    return None if match is None or layer is None else f"text_model.encoder.layers.{match[1]}.{layer}"
