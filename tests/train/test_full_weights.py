"""Trainable full weights: which layers have them, and that the model is restored."""

import pytest
import torch
from torch import nn

from costars.model.families import CROSS_KEYS_VALUES
from costars.train.full_weights import trainable_weights


@pytest.mark.parametrize("suffixes", [(), CROSS_KEYS_VALUES])
def test_weights_are_replaced_by_trainable_copies_for_the_block(tiny, predict, trace, suffixes):
    before, plain = trace(tiny.unet), predict()
    layers = {n: m for n, m in tiny.unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    with trainable_weights(tiny.unet, suffixes) as copies:
        assert copies.keys() == {n for n in layers if n.endswith(suffixes or "")}
        assert torch.allclose(predict(), plain, atol=1e-5)
        trained = {k for k, p in tiny.unet.named_parameters() if p.requires_grad}
        assert trained == {f"{path}.weight" for path in copies}
        with torch.no_grad():
            next(iter(copies.values())).add_(1)
        assert not torch.allclose(predict(), plain, atol=1e-2)
    assert trace(tiny.unet) == before and torch.equal(predict(), plain)
