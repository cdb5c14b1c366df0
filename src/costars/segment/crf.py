"""DenseCRF: mean-field inference with the exact kernel (Kraehenbuehl & Koltun 2011, arXiv 1210.5644)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_PIXELS = 128 * 128  # two kernels of pixels^2 floats are in memory at once: 2 GB at 128 x 128


@dataclass(frozen=True)
class CrfWeights:
    """Kernel widths and weights; the defaults are those of pydensecrf's README example, for 512 px images."""

    smooth_px: float = 3.0
    smooth_weight: float = 3.0
    colour_px: float = 80.0
    colour_levels: float = 13.0
    colour_weight: float = 10.0
    picture_px: int = 512
    rounds: int = 5


def dense_crf(probabilities: Tensor, image: Tensor, weights: CrfWeights = CrfWeights()) -> Tensor:
    """Refine label probabilities (l, h, w) with an image (3, h, w) in 0..255; returns (l, h, w).

    It computes on the device of both. Raises ValueError above 128 x 128 pixels.
    """
    return run_mean_field(probabilities, compute_crf_kernel(image, weights), weights.rounds)


@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
def compute_crf_kernel(image: Tensor, weights: CrfWeights = CrfWeights()) -> Tensor:
    """Return the pairwise kernel (h * w, h * w) of an image (3, h, w) in 0..255.

    Distances are scaled from picture_px to the image's longer side. Both kernels have a zero diagonal and symmetric
    normalisation. Raises ValueError above 128 x 128 pixels.
    """
    height, width = image.shape[1:]
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"image of {width} x {height} px is too large for the exact kernel (at most {MAX_PIXELS} pixels); "
            "scale it down"
        )
    scale = max(height, width) / weights.picture_px
    rows, columns = (torch.arange(size, device=image.device) for size in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    position = torch.stack([x, y], dim=-1).view(-1, 2).float()
    colour = image.float().reshape(3, -1).T
    spatial = _kernel(position / (weights.smooth_px * max(scale, 1 / weights.smooth_px)))
    bilateral = _kernel(torch.cat([position / (weights.colour_px * scale), colour / weights.colour_levels], dim=1))
    return spatial.mul_(weights.smooth_weight).add_(bilateral, alpha=weights.colour_weight)


@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
def run_mean_field(probabilities: Tensor, kernel: Tensor, rounds: int) -> Tensor:
    """Return label probabilities (l, h, w) after some rounds of mean-field updates."""
    unary = probabilities.clamp_min(1e-6).log().flatten(1)
    belief = unary.softmax(dim=0)
    for _ in range(rounds):
        belief = (unary + belief @ kernel).softmax(
            dim=0
        )  # the kernel is symmetric, and this order reads it twice as fast
    return belief.view_as(probabilities)


def _kernel(features: Tensor) -> Tensor:
    """Compute exp(-|f_i - f_j|^2 / 2) with zero diagonal, normalised as D^-1/2 K D^-1/2."""
    half = features.square().sum(dim=1) / 2
    kernel = (features @ features.T).sub_(half[:, None]).sub_(half).clamp_(max=0).exp_()
    kernel.fill_diagonal_(0)
    degree = kernel.sum(dim=1).clamp_min(1e-12).rsqrt()
    return kernel.mul_(degree[:, None]).mul_(degree)
