"""Attention without fused kernels while a model trains on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import PreTrainedModel


@contextmanager
def eager_attention(
    unet: UNet2DConditionModel, encoders: tuple[PreTrainedModel, ...], device: torch.device
) -> Iterator[None]:
    """Use eager attention on a CPU for the block; other devices are not changed.

    On a CPU the backward pass of torch's fused attention takes longer than the rest of the UNet.
    """
    if device.type != "cpu":
        yield
        return
    processors = dict(unet.attn_processors)
    implementations = [encoder.config._attn_implementation for encoder in encoders]
    unet.set_attn_processor(AttnProcessor())
    for encoder in encoders:
        encoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        unet.set_attn_processor(processors)
        for encoder, implementation in zip(encoders, implementations, strict=True):
            encoder.set_attn_implementation(implementation)
