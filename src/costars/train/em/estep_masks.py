"""EM E-step: foreground by self-attention, labels by likelihood."""

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

from costars.sample.attention_rules import find_grid
from costars.segment.crf import CrfWeights, compute_crf_kernel, run_mean_field
from costars.segment.overlap import mask_iou
from costars.segment.thresholds import compute_soft_labels, min_max_normalize
from costars.types import MaskArray


@dataclass(frozen=True, kw_only=True)
class EStepConfig:
    """Settings of the E-step.

    The number of timesteps, thresholding and the DenseCRF are those of the paper (VCD); the other numbers are ours,
    tuned on the built-in world. With use_likelihood, attention finds the foreground and denoising errors label it
    (docs/decisions/0018). Without it, masks come from cross-attention alone, as in the paper, and attention_floor,
    attention_prior_weight, error_temperature and error_blur_sigma have no effect.

    Cross-attention maps are min-max normalized to [0, 1] before settings apply to them.
    """

    timesteps: int = 50
    use_likelihood: bool = True
    error_temperature: float = 0.04  # the squared denoising error is divided by it to give log-likelihoods
    error_blur_sigma: float = 0.08  # of the blur over errors, as a fraction of the longer side
    attention_prior_weight: float = 0.25  # of log attention as the prior of the labels; 0: labels by errors alone
    attention_floor: float = 0.02  # added to maps before the logarithm
    other_maps_weight: float = 0.3  # the weighted mean of the other concepts' maps is subtracted from each map
    threshold_softness: float = 0.2  # width of the soft step at a map's threshold
    threshold_margin: float = 0.1  # added to Otsu's threshold; only without use_likelihood
    min_piece_fraction: float = 0.005  # connected components below this fraction of the image are removed
    max_mask_fraction: float = 0.9  # a mask above this fraction of the image is invalid, the previous one is kept
    crf_size_px: int = 96  # longer side of the image for the CRF
    crf: CrfWeights = CrfWeights()


@dataclass(frozen=True)
class Evidence:
    """What the model tells about the location of each concept in an image.

    maps {concept: (h, w)} are cross-attention maps of its words, self_attention (cells, cells) is summed over layers
    and timesteps, errors {concept: (h, w)} are denoising errors under its prompt alone. Without self_attention masks
    come from the maps alone.
    """

    maps: Mapping[str, Tensor]
    self_attention: Tensor | None = None
    errors: Mapping[str, Tensor] = field(default_factory=dict)


@torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
def estimate_masks(
    evidence: Evidence, image: Image.Image, config: EStepConfig, previous: Mapping[str, MaskArray]
) -> dict[str, MaskArray]:
    """Disjoint masks {concept: (h, w) of 0 and 1} of the image's size.

    A concept whose mask would be empty or cover nearly the whole image keeps its previous mask, or gets an empty one.
    """
    scale = min(1.0, config.crf_size_px / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.BOX)
    colours = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    kernel = compute_crf_kernel(colours, config.crf)
    probabilities = _label_probabilities(evidence, kernel, colours.shape[1:], config)
    refined = run_mean_field(probabilities, kernel, config.crf.rounds)
    large = interpolate(refined[None], (image.height, image.width), mode="bilinear", align_corners=False)[0]
    labels = large.argmax(dim=0).numpy()
    found = {
        name: _remove_small_components(labels == i + 1, config.min_piece_fraction)
        for i, name in enumerate(evidence.maps)
    }
    return _replace_invalid_masks(found, previous, config.max_mask_fraction)


def _replace_invalid_masks(
    found: Mapping[str, NDArray[np.bool_]], previous: Mapping[str, MaskArray], max_mask_fraction: float
) -> dict[str, MaskArray]:
    """Masks as float32; empty and too large ones become the previous mask without the pixels of the valid ones."""
    invalid = {name for name, mask in found.items() if not 0 < mask.mean() <= max_mask_fraction}
    taken = np.any([mask for name, mask in found.items() if name not in invalid], axis=0)
    empty = np.zeros(next(iter(found.values())).shape, dtype=np.float32)
    replaced = {name: (previous.get(name, empty) >= 0.5) & ~taken for name in invalid}
    return {name: replaced.get(name, mask).astype(np.float32) for name, mask in found.items()}


def _label_probabilities(evidence: Evidence, kernel: Tensor, size: Sequence[int], config: EStepConfig) -> Tensor:
    """(1 + n, h, w) probabilities of background and of each concept."""
    maps = torch.stack([one.float().cpu() for one in evidence.maps.values()])
    contrasted = subtract_other_maps(maps, config.other_maps_weight)
    if evidence.self_attention is None:
        return compute_soft_labels(_resize(contrasted, size), config.threshold_softness, config.threshold_margin)
    propagated = propagate_maps(min_max_normalize(maps), evidence.self_attention.float().cpu())
    saliency = _resize(propagated.sum(dim=0, keepdim=True), size)
    soft = compute_soft_labels(saliency, config.threshold_softness)
    foreground = run_mean_field(soft, kernel, config.crf.rounds)[1:]
    logits = config.attention_prior_weight * torch.log(contrasted + config.attention_floor)
    if evidence.errors:
        errors = torch.stack([evidence.errors[name].float().cpu() for name in evidence.maps])
        on_cells = interpolate(foreground[None], errors.shape[1:], mode="area")[0]
        logits = logits + compute_log_likelihoods(errors, on_cells, config)
    return torch.cat([1 - foreground, foreground * _resize(logits, size).softmax(dim=0)])


def subtract_other_maps(maps: Tensor, weight: float) -> Tensor:
    """Min-max normalized maps (n, h, w), minus the weighted mean of the other maps, clamped at 0.

    This lowers the cells that all words attend to.
    """
    normalized = min_max_normalize(maps)
    others = (normalized.sum(dim=0) - normalized) / max(1, len(maps) - 1)
    return (normalized - weight * others).clamp_min(0)


def propagate_maps(maps: Tensor, self_attention: Tensor) -> Tensor:
    """Propagate maps (n, h, w) one step along self-attention (cells, cells), as in DiffSegmenter.

    Each cell gets the mean of the cells that it attends to (Wang et al. 2023, arXiv 2309.02773).
    """
    height, width = maps.shape[1:]
    grid = find_grid(len(self_attention), (height, width))
    cells = interpolate(maps[None], grid, mode="area")[0].flatten(1)
    weights = self_attention / self_attention.sum(dim=1, keepdim=True)
    return _resize((cells @ weights.T).unflatten(1, grid), (height, width))


def compute_log_likelihoods(errors: Tensor, foreground: Tensor, config: EStepConfig) -> Tensor:
    """(n, h, w) log-likelihood of each cell under each concept's prompt, relative to the mean over concepts.

    The denoising error bounds the negative log-likelihood (Ho et al. 2020), so it classifies images (Li et al. 2023,
    arXiv 2303.16203). Here it classifies cells: errors are averaged over the foreground (1, h, w) around each.
    """
    sigma = config.error_blur_sigma * max(errors.shape[1:])
    relative = (errors.mean(dim=0) - errors) / config.error_temperature
    blurred = [ndimage.gaussian_filter(one.numpy(), (0, sigma, sigma)) for one in (relative * foreground, foreground)]
    return torch.from_numpy(blurred[0] / (blurred[1] + 1e-3))


def mean_iou(found: Sequence[MaskArray], truth: Sequence[MaskArray]) -> float:
    """Mean intersection over union of pairs of masks."""
    pairs = (((a >= 0.5).astype(np.float32), (b >= 0.5).astype(np.float32)) for a, b in zip(found, truth, strict=True))
    return float(np.mean([mask_iou(*pair) for pair in pairs]))


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(maps[None], tuple(size), mode="bicubic", align_corners=False)[0]


def _remove_small_components(mask: NDArray[np.bool_], min_piece_fraction: float) -> NDArray[np.bool_]:
    components, number = ndimage.label(mask)
    large = np.bincount(components.ravel(), minlength=number + 1) >= min_piece_fraction * mask.size
    large[0] = False
    found: NDArray[np.bool_] = large[components]
    return found
