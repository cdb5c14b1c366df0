"""Figures found by phrase in any picture, through transformers: a detector with SAM, or CLIPSeg.

Each segmenter loads its models when it is called and drops them before it returns: they are needed
once a picture, their memory by the UNet. A model is a folder or a hub id; offline, nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.nn.functional import interpolate
from transformers import SamProcessor

from costars.errors import SceneError
from costars.segment.checkpoint import Checkpoint, Kind, Numbers, check_checkpoint, numbers, open_checkpoint, tokenize
from costars.segment.detectors import GROUNDING_DINO, OWLV2, Detection, grounding_dino, owlv2, select
from costars.types import Layout, MaskArray, Region

SAM = Kind("sam", "SamModel", "SamImageProcessorPil", None, "facebook/sam-vit-huge")
CLIPSEG = Kind(
    "clipseg", "CLIPSegForImageSegmentation", "ViTImageProcessorPil", "CLIPTokenizer", "CIDAS/clipseg-rd64-refined"
)


@dataclass(frozen=True)
class GroundedSam:
    """GroundingDINO finds boxes, SAM the figure in each.

    The models and box_threshold are those of OMG's code for GroundingDINO (Swin-B, ViT-H, 0.3); its
    text_threshold, which says what else a box may be, has no work here: a box is its best phrase's.
    most_overlap (IoU) is the NMS of OMG's other detector, YOLO-World; GroundingDINO has none there,
    only the first box counts. mask_threshold is SAM's own, in logits.
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
        _check(self.offline, (GROUNDING_DINO, self.detector), (SAM, self.sam))

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """Every figure of every phrase, scored by the detector; reads the layout's picture alone.

        Raises ModelError for a model that cannot be used, SceneError for a phrase that cannot be read.
        """
        return _boxed(self, layout, class_names, GROUNDING_DINO, grounding_dino)


@dataclass(frozen=True)
class OwlSam:
    """OWLv2 finds boxes, SAM the figure in each.

    The detector, the template ({} is the phrase) and box_threshold are those of transformers' example
    of OWLv2, whose own default is 0.1 too. The other numbers are as in GroundedSam.
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
        _check(self.offline, (OWLV2, self.detector), (SAM, self.sam))

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """As GroundedSam."""
        return _boxed(self, layout, class_names, OWLV2, partial(owlv2, template=self.template))


@dataclass(frozen=True)
class ClipSeg:
    """CLIPSeg's map of each phrase, cut at a threshold; each connected piece is a figure.

    A pixel is its best phrase's alone. Figures of one phrase that touch are one region: it sees no
    instances. threshold is even odds, chosen by us; smallest_area (share of the picture) is that of
    the attention segmenter.
    """

    device: torch.device
    dtype: torch.dtype
    offline: bool
    model: str = CLIPSEG.example
    threshold: float = 0.5
    smallest_area: float = 0.01

    def __post_init__(self) -> None:
        _check(self.offline, (CLIPSEG, self.model))

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """Every piece of every phrase, the score being the map's mean in it; raises as GroundedSam."""
        image, phrases = layout.image.convert("RGB"), unique_phrases(class_names)
        if not phrases:
            return []
        opened = open_checkpoint(CLIPSEG, self.model, self.device, self.dtype, offline=self.offline)
        maps = phrase_maps(opened, image, phrases)
        best, found = maps.argmax(axis=0), []
        for i, phrase in enumerate(phrases):
            pieces, _ = ndimage.label((best == i) & (maps[i] > self.threshold))
            shares = np.bincount(pieces.ravel()) / pieces.size
            for piece in np.flatnonzero(shares[1:] >= self.smallest_area) + 1:
                mask = pieces == piece
                found.append(Region(phrase, mask.astype(np.float32), float(maps[i][mask].mean()), 0))
        return by_depth(found)


def _boxed(
    by: GroundedSam | OwlSam,
    layout: Layout,
    class_names: Sequence[str],
    kind: Kind,
    detect: Callable[[Checkpoint, Image.Image, Sequence[str]], tuple[Numbers, Numbers]],
) -> list[Region]:
    """The figures in a detector's boxes; the detector is gone before SAM comes, and SAM comes for some box alone."""
    image, phrases = layout.image.convert("RGB"), unique_phrases(class_names)
    if not phrases:
        return []
    opened = partial(open_checkpoint, device=by.device, dtype=by.dtype, offline=by.offline)
    boxes, scores = detect(opened(kind, by.detector), image, phrases)
    found = select(boxes, scores, phrases, by.box_threshold, by.most_overlap)
    return segment_boxes(opened(SAM, by.sam), image, found, by.mask_threshold) if found else []


def _check(offline: bool, *checkpoints: tuple[Kind, str]) -> None:
    """Raise ModelError for a checkpoint that is not there: before a layout is drawn, not after."""
    for kind, where in checkpoints:
        check_checkpoint(kind, where, offline=offline)


def unique_phrases(class_names: Sequence[str]) -> list[str]:
    """Each phrase once; raises SceneError for one without a letter or digit."""
    for phrase in class_names:
        if not any(letter.isalnum() for letter in phrase):
            raise SceneError(f"phrase {phrase!r}: holds no word; write what is to be found, such as woman")
    return list(dict.fromkeys(class_names))


def phrase_maps(checkpoint: Checkpoint, image: Image.Image, phrases: Sequence[str]) -> MaskArray:
    """How likely each pixel shows each phrase, (phrases, h, w) on the picture's grid."""
    tokens = tokenize(checkpoint, phrases, checkpoint.model.config.text_config.max_position_embeddings)
    pixels = checkpoint.images(image, return_tensors="pt")["pixel_values"].expand(len(phrases), -1, -1, -1)
    logits = torch.from_numpy(numbers(checkpoint.run(pixel_values=pixels, **tokens).logits))
    full = interpolate(logits[:, None], (image.height, image.width), mode="bilinear", align_corners=False)
    maps: MaskArray = full[:, 0].sigmoid().numpy()
    return maps


def segment_boxes(
    checkpoint: Checkpoint, image: Image.Image, found: Sequence[Detection], mask_threshold: float
) -> list[Region]:
    """The figure in each box, as SAM sees it where one answer is wanted (as OMG asks it); none if that is empty."""
    size = np.array(image.size * 2)
    boxes = [(np.array(detection.box) * size).tolist() for detection in found]
    inputs = SamProcessor(checkpoint.images)(image, input_boxes=[boxes], return_tensors="pt")
    out = checkpoint.run(pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False)
    (masks,) = checkpoint.images.post_process_masks(
        [torch.from_numpy(numbers(out.pred_masks[0]))],
        inputs["original_sizes"],
        inputs["reshaped_input_sizes"],
        mask_threshold,
    )
    filled = zip(found, masks[:, 0].numpy(), strict=True)
    return by_depth([Region(d.phrase, mask.astype(np.float32), d.score, 0) for d, mask in filled if mask.any()])


def by_depth(regions: Sequence[Region]) -> list[Region]:
    """The same regions, each with its depth: who reaches lower stands nearer; of two alike, the larger."""
    order = sorted(range(len(regions)), key=lambda i: (-regions[i].box[3], -regions[i].area))
    return [replace(region, depth=order.index(i)) for i, region in enumerate(regions)]
