"""Layers in training: where they are, that they begin as nothing, and what they amount to."""

import pytest
import torch
from torch import nn

from costars.model.families import CROSS_KEYS_VALUES
from costars.train.lora_layers import UNET_LAYERS, to_adapter, round_to_half, low_rank, trainable_weights


@pytest.fixture
def sample(tiny):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 77, 64, generator=generator)
    width = tiny.encoders[1].module.config.projection_dim
    added = {"text_embeds": torch.zeros(1, width), "time_ids": tiny.size_ids((64, 64))}
    latent = torch.randn(1, 4, 8, 8, generator=generator)
    return lambda: tiny.unet(latent, torch.tensor(300), text, added_cond_kwargs=added).sample


def test_low_rank_layers_begin_as_nothing_and_go_also_where_the_block_fails(tiny, sample, trace):
    before, plain = trace(tiny.unet), sample()
    with pytest.raises(RuntimeError, match="stop"), low_rank(tiny.unet, UNET_LAYERS["attention"], 2, 2) as factors:
        assert torch.equal(sample(), plain)
        assert len(factors) == 2 * 4 * len(tiny.unet.attn_processors)
        assert all(p.requires_grad and p.dtype is torch.float32 for p in factors.values())
        assert {k for k, p in tiny.unet.named_parameters() if p.requires_grad} and len(set(factors)) == len(factors)
        raise RuntimeError("stop")
    assert trace(tiny.unet) == before


def test_factors_are_an_adapter_in_half_precision_with_their_scale():
    factors = {"a.b.A": torch.full((2, 3), 1 / 3), "a.b.B": torch.full((5, 2), 1 / 3)}
    (path, entry), *others = to_adapter("unet", factors, 0.5).items()
    assert path == "unet.a.b" and not others
    assert torch.equal(entry.down, round_to_half(factors["a.b.A"])) and entry.up.dtype is torch.float32
    assert torch.equal(entry.up, round_to_half(torch.full((5, 2), 1 / 6)))
    assert [*to_adapter("text_encoder", factors, 1.0)] == ["text_encoder.text_model.a.b"]


@pytest.mark.parametrize("ends", [(), CROSS_KEYS_VALUES])
def test_own_weights_take_the_place_of_the_models_for_a_while(tiny, sample, trace, ends):
    before, plain = trace(tiny.unet), sample()
    layers = {n: m for n, m in tiny.unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    with trainable_weights(tiny.unet, ends) as copies:
        assert copies.keys() == {n for n in layers if n.endswith(ends or "")}
        assert torch.allclose(sample(), plain, atol=1e-5)
        trained = {k for k, p in tiny.unet.named_parameters() if p.requires_grad}
        assert trained == {f"{path}.weight" for path in copies}
        with torch.no_grad():
            next(iter(copies.values())).add_(1)
        assert not torch.allclose(sample(), plain, atol=1e-2)
    assert trace(tiny.unet) == before and torch.equal(sample(), plain)
