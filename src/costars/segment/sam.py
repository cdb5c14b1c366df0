"""Segments the figure in each box with SAM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import SamProcessor

from costars.segment.checkpoint import Checkpoint, CheckpointKind, to_numpy
from costars.segment.detectors import Detection
from costars.segment.regions import assign_depths
from costars.types import Region

SAM = CheckpointKind("sam", "SamModel", "SamImageProcessorPil", None, "facebook/sam-vit-huge")


def segment_boxes(
    checkpoint: Checkpoint, image: Image.Image, detections: Sequence[Detection], mask_threshold: float
) -> list[Region]:
    """Return SAM's single mask for each box, as OMG's code uses it; boxes with an empty mask are left out."""
    size = np.array(image.size * 2)
    boxes = [(np.array(detection.box) * size).tolist() for detection in detections]
    processor = checkpoint.image_processor
    inputs = SamProcessor(processor)(image, input_boxes=[boxes], return_tensors="pt")
    out = checkpoint.run(pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False)
    (masks,) = processor.post_process_masks(
        [torch.from_numpy(to_numpy(out.pred_masks[0]))],
        inputs["original_sizes"],
        inputs["reshaped_input_sizes"],
        mask_threshold,
    )
    pairs = zip(detections, masks[:, 0].numpy(), strict=True)
    return assign_depths([Region(d.phrase, mask.astype(np.float32), d.score, 0) for d, mask in pairs if mask.any()])
