"""LoRA layers: where they are, their initial effect, and their adapter."""

import pytest
import torch

from costars.train.lora_layers import UNET_LAYERS, lora_layers, round_to_half, to_adapter


def test_lora_layers_start_without_effect_and_are_removed_after_an_error(tiny, predict, trace):
    before, plain = trace(tiny.unet), predict()
    with pytest.raises(RuntimeError, match="stop"), lora_layers(tiny.unet, UNET_LAYERS["attention"], 2, 2) as factors:
        assert torch.equal(predict(), plain)
        assert len(factors) == 2 * 4 * len(tiny.unet.attn_processors)
        assert all(p.requires_grad and p.dtype is torch.float32 for p in factors.values())
        assert {k for k, p in tiny.unet.named_parameters() if p.requires_grad} and len(set(factors)) == len(factors)
        raise RuntimeError("stop")
    assert trace(tiny.unet) == before


def test_adapter_has_half_precision_and_the_scale_in_up():
    factors = {"a.b.A": torch.full((2, 3), 1 / 3), "a.b.B": torch.full((5, 2), 1 / 3)}
    (path, entry), *others = to_adapter("unet", factors, 0.5).items()
    assert path == "unet.a.b" and not others
    assert torch.equal(entry.down, round_to_half(factors["a.b.A"])) and entry.up.dtype is torch.float32
    assert torch.equal(entry.up, round_to_half(torch.full((5, 2), 1 / 6)))
    assert [*to_adapter("text_encoder", factors, 1.0)] == ["text_encoder.text_model.a.b"]
