"""Detects boxes by phrase with GroundingDINO or OWLv2, without torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from costars.errors import SceneError
from costars.segment.checkpoint import Checkpoint, CheckpointKind, FloatArray, to_numpy, tokenize
from costars.types import Box

GROUNDING_DINO = CheckpointKind(
    "grounding-dino",
    "GroundingDinoForObjectDetection",
    "GroundingDinoImageProcessorPil",
    "BertTokenizer",
    "IDEA-Research/grounding-dino-base",
)
OWLV2 = CheckpointKind(
    "owlv2",
    "Owlv2ForObjectDetection",
    "Owlv2ImageProcessorPil",
    "CLIPTokenizer",
    "google/owlv2-base-patch16-ensemble",
)


@dataclass(frozen=True)
class Detection:
    """A phrase, the box in which it was detected, and its score in [0, 1]."""

    phrase: str
    box: Box
    score: float


def run_grounding_dino(
    checkpoint: Checkpoint, image: Image.Image, phrases: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    """Return the boxes (n, 4) of all queries, as shares of the image, and their scores (n, phrases).

    All phrases form one text ("a cat. a dog."), so they compete; a phrase's score is that of its best token. Raises
    SceneError if the text has too many tokens.
    """
    text, spans = _join_phrases(phrases)
    inputs = checkpoint.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    starts, ends = inputs.pop("offset_mapping")[0].numpy().T
    limit = checkpoint.model.config.max_text_len
    if len(starts) > limit:
        raise SceneError(
            f"phrases {text!r}: {len(starts)} tokens, the model reads at most {limit}; use shorter phrases"
        )
    phrase_tokens = [(starts >= start) & (ends <= end) & (starts < ends) for start, end in spans]
    out = checkpoint.run(**checkpoint.image_processor(image, return_tensors="pt"), **inputs)
    probabilities = to_numpy(out.logits[0, :, : len(starts)].sigmoid())
    return _to_corners(out.pred_boxes[0]), np.stack(
        [probabilities[:, tokens].max(axis=1) for tokens in phrase_tokens], axis=1
    )


def run_owlv2(
    checkpoint: Checkpoint, image: Image.Image, phrases: Sequence[str], template: str
) -> tuple[FloatArray, FloatArray]:
    """Return the boxes (n, 4) of all patches, as shares of the image, and their scores (n, phrases).

    {} in the template is replaced by the phrase. Raises SceneError for a phrase with too many tokens.
    """
    texts = [template.replace("{}", phrase) for phrase in phrases]
    tokens = tokenize(checkpoint, texts, checkpoint.model.config.text_config.max_position_embeddings)
    out = checkpoint.run(**checkpoint.image_processor(image, return_tensors="pt"), **tokens)
    # The processor pads the image to a square, right and bottom; boxes are shares of that square.
    width, height = image.size
    scale = np.array([max(width, height) / side for side in (width, height, width, height)], dtype=np.float32)
    return _to_corners(out.pred_boxes[0]) * scale, to_numpy(out.logits[0].sigmoid())


def select_detections(
    boxes: FloatArray, scores: FloatArray, phrases: Sequence[str], threshold: float, most_overlap: float
) -> list[Detection]:
    """Select the boxes (n, 4) whose score (n, phrases) for their best phrase is above the threshold.

    A box counts for its best phrase only. Of two boxes of one phrase with an IoU above most_overlap, the better
    one is kept. Boxes are clipped to the image.
    """
    boxes = boxes.clip(0, 1)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    best = scores.argmax(axis=1)
    found = []
    for i, phrase in enumerate(phrases):
        candidates = np.flatnonzero(inside & (best == i) & (scores[:, i] > threshold))
        for j in candidates[suppress_overlaps(boxes[candidates], scores[candidates, i], most_overlap)]:
            left, top, right, bottom = boxes[j].tolist()
            found.append(Detection(phrase, (left, top, right, bottom), float(scores[j, i])))
    return found


def suppress_overlaps(boxes: FloatArray, scores: FloatArray, most_overlap: float) -> list[int]:
    """Non-maximum suppression: return the indices of kept boxes (n, 4), best first; none overlaps a better one by more
    than most_overlap (IoU).
    """
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if not kept or _iou(boxes[i], boxes[kept]).max() <= most_overlap:
            kept.append(i)
    return kept


def _iou(box: FloatArray, others: FloatArray) -> FloatArray:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1)
    iou: FloatArray = shared / (area - shared)
    return iou


def _join_phrases(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Join phrases as GroundingDINO expects them; also return the (start, end) of each in the text."""
    text, spans = "", []
    for phrase in phrases:
        words = phrase.strip().lower()
        spans.append((len(text), len(text) + len(words)))
        text += f"{words}. "
    return text.rstrip(), spans


def _to_corners(boxes: Tensor) -> FloatArray:
    """Convert (n, 4) centre x, centre y, width, height to left, top, right, bottom."""
    centre, size = np.split(to_numpy(boxes), 2, axis=1)
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)
