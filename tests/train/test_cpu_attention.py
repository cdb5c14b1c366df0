"""Eager attention on a CPU."""

import torch

from costars.train.cpu_attention import eager_attention


def test_eager_attention_gives_the_same_prediction_and_is_removed(tiny, predict, trace):
    encoders = tuple(encoder.module for encoder in tiny.encoders)
    plain, before = predict(), trace(tiny.unet)
    with eager_attention(tiny.unet, encoders, torch.device("cpu")):
        assert {encoder.config._attn_implementation for encoder in encoders} == {"eager"}
        assert trace(tiny.unet) != before
        assert torch.allclose(predict(), plain, atol=1e-5)
    assert trace(tiny.unet) == before
    assert "eager" not in {encoder.config._attn_implementation for encoder in encoders}


def test_other_devices_keep_fused_attention(tiny, trace):
    before = trace(tiny.unet)
    with eager_attention(tiny.unet, (), torch.device("cuda")):
        assert trace(tiny.unet) == before
