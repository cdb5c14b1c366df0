"""Masks to shares of the noise: the one place where the image grid meets the latent grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv1d, interpolate, pad

from costars.types import MaskArray

EDGE_SHARE = 0.5  # a cell belongs to a figure that covers at least this share of it


def make_cell_masks(
    masks: Sequence[MaskArray], size: tuple[int, int], feather_cells: float = 0.0, *, disjoint: bool = True
) -> Tensor:
    """(k, h, w) shares on the latent grid; they sum to at most one in every cell.

    masks are (H, W) in [0, 1], the front-most first: where two meet, the earlier one has the cell. Without
    disjoint both have it, whole, as in the official code, and the shares may sum to more than one.
    feather_cells is the standard deviation of a soft edge, in cells. What the masks leave is the
    global path's share, so the shares of all paths sum to one (unlike OMG's Eq. 6 as written, where
    overlapping masks add their noise).
    """
    if not masks:
        return torch.zeros(0, *size)
    coverage = torch.stack([torch.as_tensor(mask, dtype=torch.float32) for mask in masks])[None]
    coverage = interpolate(coverage, size, mode="area")[0]
    taken = torch.zeros(size, dtype=torch.bool)
    shares = torch.zeros_like(coverage)
    for i, cover in enumerate(coverage):
        mine = (cover >= EDGE_SHARE) & ~taken
        shares[i] = mine.float()
        if disjoint:
            taken |= mine
    return _feathered(shares, feather_cells) if feather_cells > 0 else shares


def _feathered(shares: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with mirrored edges: a partition of one stays a partition of one."""
    radius = min(round(3 * sigma) or 1, min(shares.shape[1:]) - 1)
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    for _ in range(2):
        padded = pad(shares, (radius, radius), mode="reflect")
        rows = conv1d(padded.reshape(-1, 1, padded.shape[-1]), kernel)
        shares = rows.view(*shares.shape[:2], shares.shape[2]).transpose(1, 2)
    return shares


def blend_noise(noise: Tensor, shares: Tensor) -> Tensor:
    """Eq. 6 of OMG on predicted noise: (p, g, c, h, w) and (p, h, w) to (g, c, h, w).

    The first path is the global one; its share is what the others leave.
    """
    return (noise * shares[:, None, None].to(noise)).sum(dim=0)


def add_global_share(shares: Tensor) -> Tensor:
    """(k, h, w) shares of the concepts to (1 + k, h, w) with the global path's first: what they leave, if anything."""
    return torch.cat([(1 - shares.sum(dim=0, keepdim=True)).clamp(min=0), shares])
