"""A loaded model: sizes, noise and decoding."""

import pytest
import torch

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


def test_noise_depends_on_seed(tiny):
    assert torch.equal(tiny.initial_noise((64, 64), 1), tiny.initial_noise((64, 64), 1))
    assert not torch.equal(tiny.initial_noise((64, 64), 1), tiny.initial_noise((64, 64), 2))


def test_latent_that_is_not_finite_is_rejected(tiny):
    with pytest.raises(ModelError, match="not finite; use --dtype float32"):
        tiny.decode(torch.full((1, 4, 8, 8), torch.nan))
