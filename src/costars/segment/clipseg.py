"""Segments figures by phrase with CLIPSeg, through transformers.

A segmenter keeps its model in the CPU's memory; it is on the device only in use, because the UNet needs the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.nn.functional import interpolate

from costars.segment.checkpoint import Checkpoint, CheckpointKind, check_checkpoint, to_numpy, tokenize
from costars.segment.checkpoint_cache import CheckpointCache, checkpoint_on_device
from costars.segment.regions import assign_depths, unique_phrases
from costars.types import Layout, Machine, MaskArray, Region

CLIPSEG = CheckpointKind(
    "clipseg", "CLIPSegForImageSegmentation", "ViTImageProcessorPil", "CLIPTokenizer", "CIDAS/clipseg-rd64-refined"
)


@dataclass(frozen=True, kw_only=True)
class ClipSeg:
    """Thresholds CLIPSeg's map of each phrase; each connected component is a figure.

    A pixel counts for its best phrase only. Figures of one phrase that touch are one region, because CLIPSeg has
    no instances. threshold is a probability, smallest_area a share of the picture as in the attention segmenter.
    """

    device: torch.device
    dtype: torch.dtype
    offline: bool
    model: str = CLIPSEG.example
    threshold: float = 0.5
    smallest_area: float = 0.01
    folders: dict[CheckpointKind, Path] = field(default_factory=dict, init=False, repr=False, compare=False)
    cache: CheckpointCache = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.folders[CLIPSEG] = check_checkpoint(CLIPSEG, self.model, offline=self.offline)

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """Return every component of every phrase; a region's score is the mean of its map inside.

        Raises ModelError for a model that cannot be used, SceneError for a phrase that cannot be read.
        """
        image, phrases = layout.image.convert("RGB"), unique_phrases(class_names)
        if not phrases:
            return []
        folder = str(self.folders[CLIPSEG])
        with checkpoint_on_device(self.cache, CLIPSEG, folder, self.device, self.dtype) as checkpoint:
            maps = compute_phrase_maps(checkpoint, image, phrases)
        best, found = maps.argmax(axis=0), []
        for i, phrase in enumerate(phrases):
            components, _ = ndimage.label((best == i) & (maps[i] > self.threshold))
            areas = np.bincount(components.ravel()) / components.size
            for component in np.flatnonzero(areas[1:] >= self.smallest_area) + 1:
                mask = components == component
                found.append(Region(phrase, mask.astype(np.float32), float(maps[i][mask].mean()), 0))
        return assign_depths(found)


def compute_phrase_maps(checkpoint: Checkpoint, image: Image.Image, phrases: Sequence[str]) -> MaskArray:
    """Return the probability that each pixel shows each phrase, (phrases, h, w) at the image's size."""
    tokens = tokenize(checkpoint, phrases, checkpoint.model.config.text_config.max_position_embeddings)
    pixels = checkpoint.image_processor(image, return_tensors="pt")["pixel_values"].expand(len(phrases), -1, -1, -1)
    logits = torch.from_numpy(to_numpy(checkpoint.run(pixel_values=pixels, **tokens).logits))
    full = interpolate(logits[:, None], (image.height, image.width), mode="bilinear", align_corners=False)
    maps: MaskArray = full[:, 0].sigmoid().numpy()
    return maps


def open_clipseg(machine: Machine, **options: Any) -> ClipSeg:
    """Open CLIPSeg with a scene's options."""
    return ClipSeg(device=machine.device, dtype=machine.dtype, offline=machine.offline, **options)
