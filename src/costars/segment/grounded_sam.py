"""Segments figures by phrase: a detector (GroundingDINO or OWLv2) finds boxes, SAM the figure in each.

The models are loaded when a segmenter is called and released before it returns, because the UNet needs the memory.
A model is a folder or a hub id; offline, nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from costars.segment.checkpoint import Checkpoint, CheckpointKind, FloatArray, check_checkpoint, open_checkpoint
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

    def __post_init__(self) -> None:
        _check_models(self, GROUNDING_DINO)

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

    def __post_init__(self) -> None:
        _check_models(self, OWLV2)

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """Return every figure of every phrase, as GroundedSam does."""
        return _find_regions(self, layout, class_names, OWLV2, partial(run_owlv2, template=self.template))


def _check_models(segmenter: GroundedSam | OwlSam, detector: CheckpointKind) -> None:
    """Raise ModelError for a missing model before a layout is drawn, not after."""
    check_checkpoint(detector, segmenter.detector, offline=segmenter.offline)
    check_checkpoint(SAM, segmenter.sam, offline=segmenter.offline)


def _find_regions(
    segmenter: GroundedSam | OwlSam,
    layout: Layout,
    class_names: Sequence[str],
    kind: CheckpointKind,
    detect: Detector,
) -> list[Region]:
    """Detect boxes, then segment them; the detector is released before SAM is loaded, which needs a box."""
    image, phrases = layout.image.convert("RGB"), unique_phrases(class_names)
    if not phrases:
        return []
    load = partial(open_checkpoint, device=segmenter.device, dtype=segmenter.dtype, offline=segmenter.offline)
    boxes, scores = detect(load(kind, segmenter.detector), image, phrases)
    detections = select_detections(boxes, scores, phrases, segmenter.box_threshold, segmenter.most_overlap)
    if not detections:
        return []
    return segment_boxes(load(SAM, segmenter.sam), image, detections, segmenter.mask_threshold)


def open_grounded_sam(machine: Machine, **options: Any) -> GroundedSam:
    """Open GroundingDINO and SAM with a scene's options."""
    return GroundedSam(device=machine.device, dtype=machine.dtype, offline=machine.offline, **options)


def open_owl_sam(machine: Machine, **options: Any) -> OwlSam:
    """Open OWLv2 and SAM with a scene's options."""
    return OwlSam(device=machine.device, dtype=machine.dtype, offline=machine.offline, **options)
