"""Attention as plain products while a model trains on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import PreTrainedModel


@contextmanager
def plain_attention(
    unet: UNet2DConditionModel, encoders: tuple[PreTrainedModel, ...], device: torch.device
) -> Iterator[None]:
    """On a CPU the backward pass of torch's fused attention takes longer than the rest of the UNet."""
    if device.type != "cpu":
        yield
        return
    processors = dict(unet.attn_processors)
    kinds = [encoder.config._attn_implementation for encoder in encoders]
    unet.set_attn_processor(AttnProcessor())
    for encoder in encoders:
        encoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        unet.set_attn_processor(processors)
        for encoder, kind in zip(encoders, kinds, strict=True):
            encoder.set_attn_implementation(kind)
