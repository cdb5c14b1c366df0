"""The own attention processor: equal to the stock one, and gone when the block ends."""

import pytest
import torch

from costars.model.families import attention_layers
from costars.sample.attention_processor import UNetCall, attention_rule


def plain(attend, query, key, value, where):
    return attend(query, key, value)


@pytest.fixture(scope="module")
def call(tiny):
    """One UNet call on two rows that differ."""
    generator = torch.Generator().manual_seed(0)
    texts = [tiny.encode_text(p) for p in ("a man in the forest", "a woman")]
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    tokens = torch.cat([t.tokens for t in texts])
    added = {"text_embeds": torch.cat([t.pooled for t in texts]), "time_ids": tiny.size_ids((64, 64)).expand(2, -1)}

    @torch.no_grad()
    def of():
        return tiny.unet(sample, torch.tensor(500), tokens, added_cond_kwargs=added).sample

    return of


def test_a_plain_rule_equals_the_stock_processor(tiny, call):
    stock = call()
    with attention_rule(attention_layers(tiny.unet), plain, UNetCall()):
        own = call()
    assert torch.allclose(own, stock, atol=1e-6, rtol=0)


def test_a_rule_that_changes_attention_changes_the_result(tiny, call):
    stock = call()
    layers = attention_layers(tiny.unet)
    with attention_rule(layers, lambda attend, q, k, v, where: attend(q, k, v) * 1.01, UNetCall()):
        assert (call() - stock).abs().max() > 1e-4


def test_the_rule_is_asked_once_in_every_layer_and_told_which(tiny, call):
    seen = []

    def watch(attend, query, key, value, where):
        seen.append(where)
        assert key.shape[2] == (77 if where.cross else query.shape[2])
        return attend(query, key, value)

    with attention_rule(attention_layers(tiny.unet), watch, UNetCall(progress=0.25, rows=slice(3, 5))):
        call()
    assert sorted(f"{w.layer}.processor" for w in seen) == sorted(tiny.unet.attn_processors)
    assert all(w.cross == w.layer.endswith(".attn2") for w in seen)
    assert {(w.progress, w.rows.start, w.rows.stop) for w in seen} == {(0.25, 3, 5)}


def test_nothing_is_left_after_the_block(tiny, call, trace):
    before, stock = trace(tiny.unet), call()
    with attention_rule(attention_layers(tiny.unet), plain, UNetCall()):
        assert trace(tiny.unet) != before
    assert trace(tiny.unet) == before
    assert torch.equal(call(), stock)


def test_nothing_is_left_after_an_error_in_the_block(tiny, call, trace):
    before = trace(tiny.unet)

    def fails(attend, query, key, value, where):
        raise ArithmeticError("in a layer")

    layers = attention_layers(tiny.unet)
    with pytest.raises(ArithmeticError, match="in a layer"), attention_rule(layers, fails, UNetCall()):
        call()
    assert trace(tiny.unet) == before
