"""DenseCRF by mean field with the exact kernel (Kraehenbuehl & Koltun 2011, arXiv 1210.5644)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_PIXELS = 128 * 128  # two exact kernels of pixels^2 numbers are held at once: 2 GB at 128 x 128


@dataclass(frozen=True)
class CrfWeights:
    """Kernel widths and weights; defaults are pydensecrf's README example, for 512 px pictures."""

    smooth_px: float = 3.0
    smooth_weight: float = 3.0
    colour_px: float = 80.0
    colour_levels: float = 13.0
    colour_weight: float = 10.0
    picture_px: int = 512
    rounds: int = 5


def dense_crf(probabilities: Tensor, image: Tensor, weights: CrfWeights = CrfWeights()) -> Tensor:
    """Refine label probabilities (l, h, w) by a picture (3, h, w) in 0..255; returns (l, h, w).

    Raises ValueError above 128 x 128 pixels.
    """
    return refined(probabilities, crf_kernel(image, weights), weights.rounds)


@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
def crf_kernel(image: Tensor, weights: CrfWeights = CrfWeights()) -> Tensor:
    """(h * w, h * w) how much each pixel of a picture (3, h, w) in 0..255 sways each other.

    Distances are scaled from picture_px to this picture's longer side; both kernels have a zero
    diagonal and symmetric normalisation. Raises ValueError above 128 x 128 pixels.
    """
    height, width = image.shape[1:]
    if height * width > MAX_PIXELS:
        raise ValueError(f"picture of {width} x {height}; the exact kernel takes at most {MAX_PIXELS} pixels")
    scale = max(height, width) / weights.picture_px
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y], dim=-1).view(-1, 2).float()
    colour = image.float().reshape(3, -1).T
    near = _kernel(place / (weights.smooth_px * max(scale, 1 / weights.smooth_px)))
    alike = _kernel(torch.cat([place / (weights.colour_px * scale), colour / weights.colour_levels], dim=1))
    return near.mul_(weights.smooth_weight).add_(alike, alpha=weights.colour_weight)


@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
def refined(probabilities: Tensor, kernel: Tensor, rounds: int) -> Tensor:
    """Label probabilities (l, h, w) after so many rounds of mean field."""
    unary = probabilities.clamp_min(1e-6).log().flatten(1)
    belief = unary.softmax(dim=0)
    for _ in range(rounds):
        belief = (unary + belief @ kernel).softmax(dim=0)  # the kernel is symmetric; so it is read in half the time
    return belief.view_as(probabilities)


def _kernel(features: Tensor) -> Tensor:
    """exp(-|f_i - f_j|^2 / 2), zero diagonal, D^-1/2 K D^-1/2."""
    half = features.square().sum(dim=1) / 2
    kernel = (features @ features.T).sub_(half[:, None]).sub_(half).clamp_(max=0).exp_()
    kernel.fill_diagonal_(0)
    degree = kernel.sum(dim=1).clamp_min(1e-12).rsqrt()
    return kernel.mul_(degree[:, None]).mul_(degree)
