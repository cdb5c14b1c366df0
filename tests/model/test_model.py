"""A loaded model: sizes, noise and decoding."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from costars.errors import ModelError, SceneError


@pytest.mark.parametrize(("size", "wrong", "near"), [((64, 100), "height 100", 96), ((50, 64), "width 50", 48)])
def test_size_error_suggests_a_multiple(tiny, size, wrong, near):
    with pytest.raises(SceneError, match=f"{wrong} does not fit this model; want a multiple of 8 px, e.g. {near}"):
        tiny.latent_size(size)


def test_sizes_are_width_height_outside_and_height_width_inside(tiny):
    assert tiny.latent_size((96, 64)) == (8, 12)
    assert tiny.initial_noise((96, 64), 0).shape == (1, 4, 8, 12)
    assert tiny.size_ids((96, 64)).tolist() == [[64, 96, 0, 0, 64, 96]]
    assert tiny.decode(torch.zeros(1, 4, 8, 12)).size == (96, 64)


@pytest.mark.parametrize(("dtype", "side"), [(torch.bfloat16, 2730), (torch.float16, 4095)])
def test_size_ids_are_not_rounded_in_half_precision(tiny, dtype, side):
    """bfloat16 rounds 2730 px to 2736, float16 4095 to 4096: SDXL's embedding of the size would be another one."""
    ids = replace(tiny, dtype=dtype).size_ids((side, 1000))
    assert ids.tolist() == [[1000, side, 0, 0, 1000, side]]
    exact = torch.tensor([1000, side, 0, 0, 1000, side])
    embedded, right, rounded = (get_timestep_embedding(each.flatten(), 256) for each in (ids, exact, ids.to(dtype)))
    assert torch.equal(embedded, right)
    assert float(torch.cosine_similarity(rounded, right, dim=-1).min()) < 0.98  # the test can tell them apart


def test_noise_depends_on_seed(tiny):
    assert torch.equal(tiny.initial_noise((64, 64), 1), tiny.initial_noise((64, 64), 1))
    assert not torch.equal(tiny.initial_noise((64, 64), 1), tiny.initial_noise((64, 64), 2))


def test_latent_that_is_not_finite_is_rejected(tiny):
    with pytest.raises(ModelError, match=r"latent is not finite; .* or a concept has damaged weights"):
        tiny.decode(torch.full((1, 4, 8, 8), torch.nan))
    with pytest.raises(ModelError, match="picture that is not finite; use --dtype float32"):
        tiny.decode(torch.full((1, 4, 8, 8), 3e37))
