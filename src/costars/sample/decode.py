"""The picture of a latent: decoded whole, or in tiles where memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from costars.errors import ran_out_of_memory
from costars.model.model import Model
from costars.model.offload import release_memory

TILE_CELLS = 64  # 512 px, which the decoders of SD 1.5 and 2 were made for; a smaller picture is halved
TILED = (
    "the decoder ran out of memory and decoded in tiles, which changes pixels slightly; "
    "to decode it whole, free device memory or set a smaller size"
)


class Decoded(NamedTuple):
    """A picture, and lines for the user."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def decode_latent(model: Model, latent: Tensor) -> Decoded:
    """Decode a latent (1, c, h, w); once more in tiles where memory runs out. Raises ModelError as Model.decode."""
    try:
        return Decoded(model.decode(latent))
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error):
            raise
    release_memory()  # outside of the handler, whose traceback refers to the decoder's tensors
    with _small_tiles(model.vae, max(1, min(TILE_CELLS, max(latent.shape[-2:]) // 2)), model.info.cell_px):
        return Decoded(model.decode(latent), (TILED,))


@contextmanager
def _small_tiles(vae: AutoencoderKL, cells: int, cell_px: int) -> Iterator[None]:
    """Within the block the decoder works in tiles of this many cells per side."""
    before = vae.use_tiling, vae.tile_latent_min_size, vae.tile_sample_min_size
    vae.use_tiling, vae.tile_latent_min_size, vae.tile_sample_min_size = True, cells, cells * cell_px
    try:
        yield
    finally:
        vae.use_tiling, vae.tile_latent_min_size, vae.tile_sample_min_size = before
