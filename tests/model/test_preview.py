"""Previews show the colours of the decoded picture, for a thousandth of its time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from costars.errors import ModelError
from costars.model.preview import COLOURS, draw_preview
from costars.types import Step


def step(latent):
    return Step("layout", 0, 1, latent, 0)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_preview_has_a_pixel_for_each_cell_and_the_colours_of_the_table(tiny, family):
    model = replace(tiny, info=replace(tiny.info, family=family))
    latent = torch.zeros(1, 4, 6, 10)
    latent[0, 2, :, 5:] = 1.0
    image = draw_preview(step(latent), model)
    assert image.size == (10, 6) and image.mode == "RGB"
    table = np.array(COLOURS[family])
    np.testing.assert_allclose(np.asarray(image)[0, 0] / 255, table[4], atol=1 / 255)
    np.testing.assert_allclose(np.asarray(image)[0, 9] / 255, table[4] + table[2], atol=1 / 255)


def test_noise_is_shown_as_noise_and_not_as_black_and_white(tiny):
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    shown = [np.asarray(draw_preview(step(noise * scale), tiny)).astype(int) for scale in (1.0, 14.6)]
    assert abs(shown[0] - shown[1]).max() <= 8


def test_other_latents_have_no_preview(tiny):
    with pytest.raises(ModelError, match=r"no preview, its latents have 16 channels instead of 4; use Model\.decode"):
        draw_preview(step(torch.zeros(1, 16, 4, 4)), tiny)
