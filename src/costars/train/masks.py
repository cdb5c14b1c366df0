"""Where each concept of an entangled picture is, by where its words look: the E-step of the EM method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from costars.segment.assign import mask_iou
from costars.segment.crf import CrfWeights, dense_crf
from costars.segment.labels import soft_labels
from costars.types import MaskArray


@dataclass(frozen=True)
class Estep:
    """How masks are made of attention maps. The paper (VCD) names 50 timesteps, binarising and a DenseCRF; the
    other numbers are ours, tried on the built-in world. likelihood weighs the maps with how well each concept's
    words explain a cell (docs/decisions/0017); without it masks are of attention alone, as in the paper."""

    timesteps: int = 50
    likelihood: bool = True
    error_scale: float = 0.04  # how much more of squared noise error makes a concept e times less likely
    error_blur: float = 0.1  # standard deviation of a blur over errors, of the longer side
    contrast: float = 0.3  # how much of the mean of the other concepts' maps is taken from each
    softness: float = 0.2  # of belief around a map's threshold, of its height
    above: float = 0.1  # how far over Otsu's threshold a map claims a pixel, of its height
    smallest: float = 0.005  # pieces under this share of the picture are dropped
    largest: float = 0.9  # a mask over more than this is no mask, the one before stays
    grid_px: int = 96  # longer side on which the CRF runs
    crf: CrfWeights = CrfWeights(rounds=10)


def disjoint(
    maps: Mapping[str, Tensor],
    image: Image.Image,
    how: Estep,
    before: Mapping[str, MaskArray],
    errors: Mapping[str, Tensor] | None = None,
) -> dict[str, MaskArray]:
    """{concept: (h, w) 0 or 1 mask of the picture's size}, no pixel in two, from maps (h, w) of any size.

    errors (h, w), of the same size, are the noise errors under each concept's words alone. A concept that
    would be left with nothing, or with nearly everything, keeps the mask it had before.
    """
    share = min(1.0, how.grid_px / max(image.size))
    size = (max(1, round(image.height * share)), max(1, round(image.width * share)))
    each = contrasted(torch.stack([one.float().cpu() for one in maps.values()]), how.contrast)
    if errors:
        each = each * likelihoods(torch.stack([errors[name].float().cpu() for name in maps]), how)
    shown = interpolate(each[None], size, mode="bicubic", align_corners=False)[0]
    small = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BOX)
    colours = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    belief = dense_crf(soft_labels(shown, how.softness, how.above), colours, how.crf)
    large = interpolate(belief[None], (image.height, image.width), mode="bilinear", align_corners=False)[0]
    label = large.argmax(dim=0).numpy()
    found = {name: _without_crumbs(label == i + 1, how.smallest) for i, name in enumerate(maps)}
    kept = {name for name, mask in found.items() if not 0 < mask.mean() <= how.largest and name in before}
    taken = np.any([mask for name, mask in found.items() if name not in kept], axis=0)
    masks = {name: (before[name] >= 0.5) & ~taken if name in kept else mask for name, mask in found.items()}
    return {name: mask.astype(np.float32) for name, mask in masks.items()}


def contrasted(maps: Tensor, share: float) -> Tensor:
    """(n, h, w) in shares of each one's height, less this much of the mean of the others: where all words look, each
    looks less, and one that looks nowhere in particular still does."""
    low = maps - maps.amin(dim=(1, 2), keepdim=True)
    high = low / low.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    others = (high.sum(dim=0) - high) / max(1, len(maps) - 1)
    return (high - share * others).clamp_min(0)


def likelihoods(errors: Tensor, how: Estep) -> Tensor:
    """(n, h, w) how likely each cell is under each concept's words, held against the likeliest.

    The noise error bounds a picture's negative log-likelihood (Ho et al. 2020), and so tells what a picture shows
    (Li et al. 2023, arXiv 2303.16203); here for each cell and its surroundings.
    """
    shape = errors.shape[1:]
    width = how.error_blur * max(shape)
    blurred = torch.from_numpy(ndimage.gaussian_filter(errors.numpy(), (0, width, width)))
    return torch.exp((blurred.amin(dim=0) - blurred) / how.error_scale)


def _without_crumbs(mask: NDArray[np.bool_], smallest: float) -> NDArray[np.bool_]:
    pieces, number = ndimage.label(mask)
    large = np.bincount(pieces.ravel(), minlength=number + 1) >= smallest * mask.size
    large[0] = False
    found: NDArray[np.bool_] = large[pieces]
    return found


def mean_iou(found: Sequence[MaskArray], truth: Sequence[MaskArray]) -> float:
    """Mean intersection over union of pairs of masks, each concept counting alike."""
    pairs = (((a >= 0.5).astype(np.float32), (b >= 0.5).astype(np.float32)) for a, b in zip(found, truth, strict=True))
    return float(np.mean([mask_iou(*pair) for pair in pairs]))
