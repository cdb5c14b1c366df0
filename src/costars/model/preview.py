"""A cheap picture of a latent: one linear map from its channels to colours, instead of the VAE."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from costars.errors import ModelError
from costars.model.model import Model
from costars.scene.scene import BUILTIN
from costars.types import Step

# (c + 1, 3): the red, green and blue in [0, 1] of each channel of a scaled latent, then of no latent.
# SD: the map of "Decoding latents to RGB without upscaling" (discuss.huggingface.co, t 23204), there for [-1, 1]; SD 2
# has the latents of SD 1.5. SDXL: diffusers' documentation ("Display image after each generation step"), there for
# 255 levels. builtin: fitted by costars_world.training.preview, which explains 92 % of the variance of other renders.
_SD = (
    (0.149, 0.1035, 0.104),
    (0.0935, 0.143, 0.0865),
    (-0.079, 0.0945, 0.132),
    (-0.092, -0.1355, -0.2365),
    (0.5, 0.5, 0.5),
)
_SDXL = (
    (60 / 255, 60 / 255, 60 / 255),
    (-60 / 255, -5 / 255, 10 / 255),
    (25 / 255, 15 / 255, -5 / 255),
    (-70 / 255, -50 / 255, -35 / 255),
    (150 / 255, 140 / 255, 130 / 255),
)
_BUILTIN = (
    (0.103, 0.071, 0.039),
    (0.287, 0.165, 0.206),
    (-0.002, 0.058, 0.158),
    (-0.034, -0.030, -0.028),
    (-0.026, -0.061, -0.084),
    (-0.132, -0.126, -0.177),
    (-0.174, -0.136, -0.230),
    (0.087, 0.051, 0.046),
    (0.567, 0.586, 0.565),
)
COLOURS: Mapping[str, tuple[tuple[float, ...], ...]] = {"sd15": _SD, "sd2": _SD, "sdxl": _SDXL, BUILTIN: _BUILTIN}


def draw_preview(step: Step, model: Model) -> Image.Image:
    """A small picture of a step, one pixel for each latent cell; takes well under a millisecond per megapixel.

    model is the one that draws. The first steps are mostly noise. Raises ModelError for a model whose latents have
    another number of channels than its family's.
    """
    info = model.info
    table = torch.tensor(COLOURS.get(info.name, COLOURS[info.family]))
    latent = step.latent[0].detach().float().cpu()
    if len(table) != len(latent) + 1:
        raise ModelError(
            f"model {info.name!r}: no preview, its latents have {len(latent)} channels instead of {len(table) - 1}; "
            "use Model.decode(step.latent), which takes longer"
        )
    return Image.fromarray(_map_colours(latent, table).mul(255).round().byte().permute(1, 2, 0).numpy())


def _map_colours(latent: Tensor, table: Tensor) -> Tensor:
    """(3, h, w) in [0, 1] of a latent (c, h, w); noisy latents, which are larger, are brought to unit deviation."""
    scaled = latent / latent.std().clamp(min=1.0)
    return (torch.einsum("chw,cr->rhw", scaled, table[:-1]) + table[-1][:, None, None]).clamp(0, 1)
