"""Segments a layout by the cross-attention of its class words; works with any checkpoint, without other weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch.nn.functional import interpolate

from costars.segment.crf import CrfWeights, dense_crf
from costars.segment.thresholds import SOFTNESS, compute_soft_labels
from costars.types import Layout, Machine, MaskArray, Region, RegionError

GRID_PX = 96  # longer side of the grid for the CRF: 0.7 GB and about a second


@dataclass(frozen=True)
class AttentionSegmenter:
    """Refines the cross-attention maps of the class words with a DenseCRF and splits them into instances.

    smallest_area is a share of the picture; softness is that of compute_soft_labels. The CRF runs on the device.
    """

    softness: float = SOFTNESS
    smallest_area: float = 0.01
    crf: CrfWeights = CrfWeights()
    device: str | torch.device = "cpu"

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """Return one region for each occurrence of a class name; regions that reach lower are nearer.

        Raises RegionError if the layout has no attention map of a class.
        """
        counts = {name: class_names.count(name) for name in dict.fromkeys(class_names)}
        maps = {name: _mean_map(layout, name) for name in counts}
        image, scores = _resize_to_grid(layout.image, np.stack(list(maps.values())))
        probabilities = compute_soft_labels(scores, self.softness).to(self.device)
        labels = dense_crf(probabilities, image.to(self.device), self.crf).argmax(dim=0).cpu().numpy()
        found: list[tuple[str, NDArray[np.bool_], float]] = []
        for i, (name, count) in enumerate(counts.items()):
            for part in split_instances(labels == i + 1, count, self.smallest_area):
                found.append((name, part, float(scores[i].numpy()[part].mean())))
        order = sorted(range(len(found)), key=lambda i: -_lowest_row(found[i][1]))
        width, height = layout.image.size
        return [
            Region(name, _resize_mask(mask, (width, height)), min(1.0, score), order.index(i))
            for i, (name, mask, score) in enumerate(found)
        ]


def _mean_map(layout: Layout, name: str) -> NDArray[np.float32]:
    """Return the mean map of all occurrences of a word, scaled to [0, 1]."""
    maps = [m for word, m in layout.maps.items() if word.rpartition(" ")[0] == name]
    if not maps:
        raise RegionError(
            f"the layout has no attention map for {name!r}; it has {', '.join(layout.maps) or 'none'}; "
            "plan the scene again",
            layout,
        )
    mean = np.mean(maps, axis=0)
    scaled: NDArray[np.float32] = (mean - mean.min()) / max(float(np.ptp(mean)), 1e-12)
    return scaled


def _resize_to_grid(image: Image.Image, maps: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    share = min(1.0, GRID_PX / max(image.size))
    size = (max(1, round(image.height * share)), max(1, round(image.width * share)))
    small = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BOX)
    scores = interpolate(torch.from_numpy(maps)[None].float(), size, mode="bicubic", align_corners=False)[0]
    return torch.from_numpy(np.array(small)).permute(2, 0, 1), scores.clamp(0, 1)


def split_instances(mask: NDArray[np.bool_], count: int, smallest_area: float) -> list[NDArray[np.bool_]]:
    """Split a class's mask into count figures, from left to right.

    Connected components are figures. While there are too few, the widest one is cut by 2-means on x. Components
    smaller than smallest_area (share of the picture) are dropped.
    """
    components, number = ndimage.label(mask)
    parts = [components == i + 1 for i in range(number)]
    parts = sorted((p for p in parts if p.mean() >= smallest_area), key=np.sum, reverse=True)[:count]
    while parts and len(parts) < count:
        widest = max(range(len(parts)), key=lambda i: np.ptp(np.nonzero(parts[i])[1]))
        whole = parts.pop(widest)
        cut = _find_cut(np.nonzero(whole)[1].astype(np.float64))
        left = np.arange(mask.shape[1])[None, :] < cut
        halves = [whole & left, whole & ~left]
        if min(h.mean() for h in halves) < smallest_area:
            return sorted([*parts, whole], key=_mean_column)
        parts += halves
    return sorted(parts, key=_mean_column)


def _find_cut(values: NDArray[np.float64]) -> float:
    """Return the boundary between the two clusters of 2-means."""
    low, high = float(values.min()), float(values.max())
    for _ in range(20):
        cut = (low + high) / 2
        if not (values < cut).any() or not (values >= cut).any():
            break
        low, high = float(values[values < cut].mean()), float(values[values >= cut].mean())
    return (low + high) / 2


def _mean_column(mask: NDArray[np.bool_]) -> float:
    return float(np.nonzero(mask)[1].mean())


def _lowest_row(mask: NDArray[np.bool_]) -> float:
    """Return the lowest row of a mask; figures that reach lower are taken to be nearer."""
    return float(np.nonzero(mask.any(axis=1))[0].max())


def _resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> MaskArray:
    large = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return (np.asarray(large) >= 128).astype(np.float32)


def open_segmenter(machine: Machine) -> AttentionSegmenter:
    """Open the segmenter with its defaults; it needs no weights."""
    return AttentionSegmenter(device=machine.device)
