"""Where each concept of an entangled picture is, by what the model tells of it: the E-step of the EM method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from costars.sample.attention_rules import grid_of
from costars.segment.crf import CrfWeights, crf_kernel, refined
from costars.segment.match_cast import mask_iou
from costars.segment.thresholds import raised, soft_labels
from costars.types import MaskArray


@dataclass(frozen=True)
class EStepConfig:
    """How masks are made. The paper (VCD) names 50 timesteps, binarising and a DenseCRF; the other numbers are
    ours, tried on the built-in world. With likelihood attention says where anybody is and the noise errors who it is
    (docs/decisions/0018); without it masks are of cross-attention alone, as in the paper, and error_scale, error_blur,
    attention_power and least are not used."""

    timesteps: int = 50
    use_likelihood: bool = True
    error_temperature: float = 0.04  # how much more of squared noise error makes a concept e times less likely
    error_blur_sigma: float = 0.08  # standard deviation of a blur over errors, of the longer side
    attention_prior_weight: float = 0.25  # of the maps as the prior of who it is; 0: the errors alone say so
    attention_floor: float = 0.02  # floor of a map before its logarithm, in shares of its height
    other_maps_weight: float = 0.3  # how much of the mean of the other concepts' maps is taken from each
    threshold_softness: float = 0.2  # of belief around a map's threshold, of its height
    threshold_margin: float = 0.1  # how far over Otsu's threshold a map claims a pixel, of its height; without likelihood alone
    min_piece_fraction: float = 0.005  # pieces under this share of the picture are dropped
    max_mask_fraction: float = 0.9  # a mask over more than this is no mask, the one before stays
    crf_size_px: int = 96  # longer side on which the CRF runs
    crf: CrfWeights = CrfWeights()


@dataclass(frozen=True)
class Evidence:
    """What the model tells of where each concept of a picture is.

    maps {concept: (h, w)} are where its words look; kin (cells, cells) how much each cell attends to every other;
    errors {concept: (h, w)} the noise errors under its words alone. Without kin masks are of the maps alone.
    """

    maps: Mapping[str, Tensor]
    self_attention: Tensor | None = None
    errors: Mapping[str, Tensor] = field(default_factory=dict)


@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
def estimate_masks(
    evidence: Evidence, image: Image.Image, how: EStepConfig, before: Mapping[str, MaskArray]
) -> dict[str, MaskArray]:
    """{concept: (h, w) 0 or 1 mask of the picture's size}, no pixel in two.

    A concept that would be left with nothing, or with nearly everything, keeps the mask it had before, or has none.
    """
    share = min(1.0, how.crf_size_px / max(image.size))
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    small = image.convert("RGB").resize(size, Image.Resampling.BOX)
    colours = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    kernel = crf_kernel(colours, how.crf)
    belief = refined(_labels(evidence, kernel, colours.shape[1:], how), kernel, how.crf.rounds)
    large = interpolate(belief[None], (image.height, image.width), mode="bilinear", align_corners=False)[0]
    label = large.argmax(dim=0).numpy()
    found = {name: _without_crumbs(label == i + 1, how.min_piece_fraction) for i, name in enumerate(evidence.maps)}
    kept = {name for name, mask in found.items() if not 0 < mask.mean() <= how.max_mask_fraction}
    taken = np.any([mask for name, mask in found.items() if name not in kept], axis=0)
    none = np.zeros(label.shape, dtype=np.float32)
    masks = {n: (before.get(n, none) >= 0.5) & ~taken if n in kept else mask for n, mask in found.items()}
    return {name: mask.astype(np.float32) for name, mask in masks.items()}


def _labels(evidence: Evidence, kernel: Tensor, size: Sequence[int], how: EStepConfig) -> Tensor:
    """(1 + n, h, w) how likely each pixel is nobody's, and each concept's."""
    maps = torch.stack([one.float().cpu() for one in evidence.maps.values()])
    if evidence.self_attention is None:
        return soft_labels(_resized(subtract_other_maps(maps, how.other_maps_weight), size), how.threshold_softness, how.threshold_margin)
    anybody = propagate_maps(raised(maps), evidence.self_attention.float().cpu()).sum(dim=0, keepdim=True)
    where = refined(soft_labels(_resized(anybody, size), how.threshold_softness), kernel, how.crf.rounds)[1:]
    logits = how.attention_prior_weight * torch.log(subtract_other_maps(maps, how.other_maps_weight) + how.attention_floor)
    if evidence.errors:
        errors = torch.stack([evidence.errors[name].float().cpu() for name in evidence.maps])
        logits = logits + compute_log_likelihoods(errors, interpolate(where[None], errors.shape[1:], mode="area")[0], how)
    return torch.cat([1 - where, where * _resized(logits, size).softmax(dim=0)])


def subtract_other_maps(maps: Tensor, share: float) -> Tensor:
    """(n, h, w) in shares of each one's height, less this much of the mean of the others: where all words look, each
    looks less, and one that looks nowhere in particular still does."""
    high = raised(maps)
    others = (high.sum(dim=0) - high) / max(1, len(maps) - 1)
    return (high - share * others).clamp_min(0)


def propagate_maps(maps: Tensor, self_attention: Tensor) -> Tensor:
    """(n, h, w) maps, each cell the mean of those that it attends to (cells, cells): a hat goes with its head.

    One step along self-attention, as DiffSegmenter completes cross-attention (Wang et al. 2023, arXiv 2309.02773).
    """
    height, width = maps.shape[1:]
    grid = grid_of(len(self_attention), (height, width))
    cells = interpolate(maps[None], grid, mode="area")[0].flatten(1)
    shares = self_attention / self_attention.sum(dim=1, keepdim=True)
    return _resized((cells @ shares.T).unflatten(1, grid), (height, width))


def compute_log_likelihoods(errors: Tensor, within: Tensor, how: EStepConfig) -> Tensor:
    """(n, h, w) how likely each cell is under each concept's words, the logarithm, held against their mean.

    The noise error bounds a picture's negative log-likelihood (Ho et al. 2020), and so tells what a picture shows
    (Li et al. 2023, arXiv 2303.16203); here for each cell and what is within (1, h, w) of its surroundings.
    """
    width = how.error_blur_sigma * max(errors.shape[1:])
    better = (errors.mean(dim=0) - errors) / how.error_temperature
    blurred = [ndimage.gaussian_filter(one.numpy(), (0, width, width)) for one in (better * within, within)]
    return torch.from_numpy(blurred[0] / (blurred[1] + 1e-3))


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(maps[None], tuple(size), mode="bicubic", align_corners=False)[0]


def _without_crumbs(mask: NDArray[np.bool_], min_piece_fraction: float) -> NDArray[np.bool_]:
    pieces, number = ndimage.label(mask)
    large = np.bincount(pieces.ravel(), minlength=number + 1) >= min_piece_fraction * mask.size
    large[0] = False
    found: NDArray[np.bool_] = large[pieces]
    return found


def mean_iou(found: Sequence[MaskArray], truth: Sequence[MaskArray]) -> float:
    """Mean intersection over union of pairs of masks, each concept counting alike."""
    pairs = (((a >= 0.5).astype(np.float32), (b >= 0.5).astype(np.float32)) for a, b in zip(found, truth, strict=True))
    return float(np.mean([mask_iou(*pair) for pair in pairs]))
