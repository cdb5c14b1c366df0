"""Where memory runs out in the decoder, the picture is decoded again in tiles."""

import numpy as np
import pytest
import torch

from costars.sample.decode import TILED, decode_latent

FULL_MESSAGE = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
FULL = RuntimeError(FULL_MESSAGE)


@pytest.fixture
def limit_decoder(tiny, monkeypatch):
    """Let the decoder run out of memory above this many cells per side; returns the sizes that it was given."""

    def limit(cells, error=FULL):
        sizes, forward = [], tiny.vae.decoder.forward

        def limited(z, *rest):
            sizes.append(tuple(z.shape[-2:]))
            if max(sizes[-1]) > cells:
                raise error
            return forward(z, *rest)

        monkeypatch.setattr(tiny.vae.decoder, "forward", limited)
        return sizes

    return limit


def tiling(vae):
    return vae.use_tiling, vae.tile_latent_min_size, vae.tile_sample_min_size


@pytest.fixture
def latent():
    return torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(0))


def test_a_picture_that_fits_is_decoded_whole(tiny, latent, limit_decoder):
    sizes = limit_decoder(99)
    assert decode_latent(tiny, latent).notes == () and sizes == [(12, 16)]


def test_a_picture_that_does_not_fit_is_decoded_in_tiles_and_says_so(tiny, latent, limit_decoder):
    whole, before = tiny.decode(latent), tiling(tiny.vae)
    sizes = limit_decoder(8)
    image, notes = decode_latent(tiny, latent)
    assert notes == (TILED,) and max(max(size) for size in sizes[1:]) == 8
    difference = np.abs(np.asarray(image, dtype=float) - np.asarray(whole, dtype=float))
    assert image.size == whole.size == (128, 96) and difference.mean() < 16  # of 255 levels
    assert tiling(tiny.vae) == before


@pytest.mark.parametrize("error", [FULL, ValueError("another")])
def test_an_error_that_tiles_do_not_help_is_raised(tiny, latent, limit_decoder, error):
    sizes, before = limit_decoder(2, error), tiling(tiny.vae)
    with pytest.raises(type(error)):
        decode_latent(tiny, latent)
    assert len(sizes) == (2 if isinstance(error, RuntimeError) else 1) and tiling(tiny.vae) == before
