"""Segments figures by phrase: a detector (GroundingDINO or OWLv2) finds boxes, SAM the figure in each.

A segmenter keeps its models in the CPU's memory; they are on the device only in use, because the UNet needs the memory.
A model is a folder or a hub id; offline, nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from costars.segment.checkpoint import Checkpoint, CheckpointKind, FloatArray, check_checkpoint
from costars.segment.checkpoint_cache import CheckpointCache, checkpoint_on_device
from costars.segment.detectors import GROUNDING_DINO, OWLV2, run_grounding_dino, run_owlv2, select_detections
from costars.segment.regions import unique_phrases
from costars.segment.sam import SAM, segment_boxes
from costars.types import Layout, Machine, Region

Detector = Callable[[Checkpoint, Image.Image, Sequence[str]], tuple[FloatArray, FloatArray]]


@dataclass(frozen=True, kw_only=True)
class GroundedSam:
    """GroundingDINO finds boxes, SAM the figure in each.

    The models and box_threshold are those of OMG's code for GroundingDINO (Swin-B, ViT-H, 0.3). Its text_threshold
    is not used, because a box counts for its best phrase only. most_overlap (IoU) is the NMS threshold of OMG's
    other detector, YOLO-World; OMG uses only the first box of GroundingDINO. mask_threshold is SAM's, in logits.
    """

    device: torch.device
    dtype: torch.dtype
    offline: bool
    detector: str = GROUNDING_DINO.example
    sam: str = SAM.example
    box_threshold: float = 0.3
    most_overlap: float = 0.5
    mask_threshold: float = 0.0
    folders: dict[CheckpointKind, Path] = field(default_factory=dict, init=False, repr=False, compare=False)
    cache: CheckpointCache = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _find_models(self, GROUNDING_DINO)

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """Return every figure of every phrase, scored by the detector; only the layout's image is used.

        Raises ModelError for a model that cannot be used, SceneError for a phrase that cannot be read.
        """
        return _find_regions(self, layout, class_names, GROUNDING_DINO, run_grounding_dino)


@dataclass(frozen=True, kw_only=True)
class OwlSam:
    """OWLv2 finds boxes, SAM the figure in each.

    The detector, the template ({} is the phrase) and box_threshold are those of transformers' OWLv2 example;
    0.1 is also OWLv2's own default. The other values are as in GroundedSam.
    """

    device: torch.device
    dtype: torch.dtype
    offline: bool
    detector: str = OWLV2.example
    sam: str = SAM.example
    template: str = "a photo of a {}"
    box_threshold: float = 0.1
    most_overlap: float = 0.5
    mask_threshold: float = 0.0
    folders: dict[CheckpointKind, Path] = field(default_factory=dict, init=False, repr=False, compare=False)
    cache: CheckpointCache = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _find_models(self, OWLV2)

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """Return every figure of every phrase, as GroundedSam does."""
        return _find_regions(self, layout, class_names, OWLV2, partial(run_owlv2, template=self.template))


def _find_models(segmenter: GroundedSam | OwlSam, detector: CheckpointKind) -> None:
    """Find the folders of the models, once; raise ModelError for a missing one before a layout is drawn, not after."""
    for kind, name in ((detector, segmenter.detector), (SAM, segmenter.sam)):
        segmenter.folders[kind] = check_checkpoint(kind, name, offline=segmenter.offline)


def _find_regions(
    segmenter: GroundedSam | OwlSam,
    layout: Layout,
    class_names: Sequence[str],
    kind: CheckpointKind,
    detect: Detector,
) -> list[Region]:
    """Detect boxes, then segment them; SAM is loaded only if there is a box."""
    image, phrases = layout.image.convert("RGB"), unique_phrases(class_names)
    if not phrases:
        return []
    with _on_device(segmenter, kind) as detector:
        boxes, scores = detect(detector, image, phrases)
    detections = select_detections(boxes, scores, phrases, segmenter.box_threshold, segmenter.most_overlap)
    if not detections:
        return []
    with _on_device(segmenter, SAM) as sam:
        return segment_boxes(sam, image, detections, segmenter.mask_threshold)


def _on_device(segmenter: GroundedSam | OwlSam, kind: CheckpointKind) -> AbstractContextManager[Checkpoint]:
    folder = str(segmenter.folders[kind])
    return checkpoint_on_device(segmenter.cache, kind, folder, segmenter.device, segmenter.dtype)


def open_grounded_sam(machine: Machine, **options: Any) -> GroundedSam:
    """Open GroundingDINO and SAM with a scene's options."""
    return GroundedSam(device=machine.device, dtype=machine.dtype, offline=machine.offline, **options)


def open_owl_sam(machine: Machine, **options: Any) -> OwlSam:
    """Open OWLv2 and SAM with a scene's options."""
    return OwlSam(device=machine.device, dtype=machine.dtype, offline=machine.offline, **options)
