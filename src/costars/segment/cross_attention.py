"""Masks from where the layout's words looked: needs no further weights, so it serves any checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch.nn.functional import interpolate

from costars.errors import RegionError
from costars.segment.crf import CrfWeights, dense_crf
from costars.segment.thresholds import SOFTNESS, soft_labels
from costars.types import Layout, MaskArray, Region

GRID_PX = 96  # the longer side on which the CRF runs: 0.7 GB and about a second


@dataclass(frozen=True)
class AttentionSegmenter:
    """Cross-attention maps of the class words, refined by a DenseCRF, split into instances."""

    softness: float = SOFTNESS
    smallest_area: float = 0.01
    crf: CrfWeights = CrfWeights()

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """One region per occurrence of a class word in the layout's prompt; nearer the ground is nearer."""
        wanted = {name: class_names.count(name) for name in dict.fromkeys(class_names)}
        maps = {name: _map_of(layout, name) for name in wanted}
        image, scores = _on_grid(layout.image, np.stack(list(maps.values())))
        belief = dense_crf(soft_labels(scores, self.softness), image, self.crf).argmax(dim=0).numpy()
        found: list[tuple[str, NDArray[np.bool_], float]] = []
        for i, (name, count) in enumerate(wanted.items()):
            for part in split_instances(belief == i + 1, count, self.smallest_area):
                found.append((name, part, float(scores[i].numpy()[part].mean())))
        order = sorted(range(len(found)), key=lambda i: -_foot(found[i][1]))
        width, height = layout.image.size
        return [
            Region(name, _full_size(mask, (width, height)), min(1.0, score), order.index(i))
            for i, (name, mask, score) in enumerate(found)
        ]


def _map_of(layout: Layout, name: str) -> NDArray[np.float32]:
    """The mean map of every occurrence of a word, its lowest value 0 and its peak 1."""
    maps = [m for word, m in layout.maps.items() if word.rpartition(" ")[0] == name]
    if not maps:
        raise RegionError(
            f"the layout has no attention map for {name!r}; it has {', '.join(layout.maps) or 'none'}", layout
        )
    mean = np.mean(maps, axis=0)
    spread: NDArray[np.float32] = (mean - mean.min()) / max(float(np.ptp(mean)), 1e-12)
    return spread


def _on_grid(image: Image.Image, maps: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    share = min(1.0, GRID_PX / max(image.size))
    size = (max(1, round(image.height * share)), max(1, round(image.width * share)))
    small = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BOX)
    scores = interpolate(torch.from_numpy(maps)[None].float(), size, mode="bicubic", align_corners=False)[0]
    return torch.from_numpy(np.array(small)).permute(2, 0, 1), scores.clamp(0, 1)


def split_instances(mask: NDArray[np.bool_], count: int, smallest_area: float) -> list[NDArray[np.bool_]]:
    """Cut a class's mask into this many figures, left to right.

    Connected pieces are figures; while there are too few, the widest piece is cut between its two
    halves by 2-means on x. Pieces under smallest_area (share of the picture) are dropped.
    """
    pieces, number = ndimage.label(mask)
    parts = [pieces == i + 1 for i in range(number)]
    parts = sorted((p for p in parts if p.mean() >= smallest_area), key=np.sum, reverse=True)[:count]
    while parts and len(parts) < count:
        widest = max(range(len(parts)), key=lambda i: np.ptp(np.nonzero(parts[i])[1]))
        whole = parts.pop(widest)
        cut = _two_means(np.nonzero(whole)[1].astype(np.float64))
        left = np.arange(mask.shape[1])[None, :] < cut
        halves = [whole & left, whole & ~left]
        if min(h.mean() for h in halves) < smallest_area:
            return sorted([*parts, whole], key=_middle)
        parts += halves
    return sorted(parts, key=_middle)


def _two_means(values: NDArray[np.float64]) -> float:
    low, high = float(values.min()), float(values.max())
    for _ in range(20):
        cut = (low + high) / 2
        if not (values < cut).any() or not (values >= cut).any():
            break
        low, high = float(values[values < cut].mean()), float(values[values >= cut].mean())
    return (low + high) / 2


def _middle(mask: NDArray[np.bool_]) -> float:
    return float(np.nonzero(mask)[1].mean())


def _foot(mask: NDArray[np.bool_]) -> float:
    """The lowest row: what stands lower in a picture stands nearer."""
    return float(np.nonzero(mask.any(axis=1))[0].max())


def _full_size(mask: NDArray[np.bool_], size: tuple[int, int]) -> MaskArray:
    large = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    return (np.asarray(large) >= 128).astype(np.float32)
