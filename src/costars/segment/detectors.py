"""Boxes by phrase: where GroundingDINO or OWLv2 see each phrase, without torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from costars.errors import SceneError
from costars.segment.checkpoint import Checkpoint, Kind, Numbers, numbers, tokenize
from costars.types import Box

GROUNDING_DINO = Kind(
    "grounding-dino",
    "GroundingDinoForObjectDetection",
    "GroundingDinoImageProcessorPil",
    "BertTokenizer",
    "IDEA-Research/grounding-dino-base",
)
OWLV2 = Kind(
    "owlv2",
    "Owlv2ForObjectDetection",
    "Owlv2ImageProcessorPil",
    "CLIPTokenizer",
    "google/owlv2-base-patch16-ensemble",
)


@dataclass(frozen=True)
class Detection:
    """A phrase, the box in which it was seen and how surely, from 0 to 1."""

    phrase: str
    box: Box
    score: float


def grounding_dino(checkpoint: Checkpoint, image: Image.Image, phrases: Sequence[str]) -> tuple[Numbers, Numbers]:
    """Every query's box (n, 4), as shares of the picture, and its scores (n, phrases).

    The phrases go in as one text ("a cat. a dog."), so that they compete; a phrase's score is that
    of its best token. Raises SceneError for too long a text.
    """
    text, spans = _one_text(phrases)
    tokens = checkpoint.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    starts, ends = tokens.pop("offset_mapping")[0].numpy().T
    limit = checkpoint.model.config.max_text_len
    if len(starts) > limit:
        raise SceneError(f"phrases {text!r}: {len(starts)} tokens, the model reads at most {limit}; write shorter ones")
    mine = [(starts >= start) & (ends <= end) & (starts < ends) for start, end in spans]
    out = checkpoint.run(**checkpoint.images(image, return_tensors="pt"), **tokens)
    chances = numbers(out.logits[0, :, : len(starts)].sigmoid())
    return _corners(out.pred_boxes[0]), np.stack([chances[:, places].max(axis=1) for places in mine], axis=1)


def owlv2(checkpoint: Checkpoint, image: Image.Image, phrases: Sequence[str], template: str) -> tuple[Numbers, Numbers]:
    """Every patch's box (n, 4), as shares of the picture, and its scores (n, phrases).

    {} in the template is the phrase. Raises SceneError for a phrase that is too long.
    """
    texts = [template.replace("{}", phrase) for phrase in phrases]
    tokens = tokenize(checkpoint, texts, checkpoint.model.config.text_config.max_position_embeddings)
    out = checkpoint.run(**checkpoint.images(image, return_tensors="pt"), **tokens)
    # The picture is padded at the right and the bottom to a square, and boxes are shares of that.
    width, height = image.size
    stretch = np.array([max(width, height) / side for side in (width, height, width, height)], dtype=np.float32)
    return _corners(out.pred_boxes[0]) * stretch, numbers(out.logits[0].sigmoid())


def select(
    boxes: Numbers, scores: Numbers, phrases: Sequence[str], threshold: float, most_overlap: float
) -> list[Detection]:
    """What is seen: boxes (n, 4) whose score (n, phrases) for their best phrase is above the threshold.

    A box is its best phrase's alone; of two boxes of one phrase with an IoU above most_overlap the
    better one stays. Boxes end at the picture's edge.
    """
    boxes = boxes.clip(0, 1)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    best = scores.argmax(axis=1)
    found = []
    for i, phrase in enumerate(phrases):
        mine = np.flatnonzero(inside & (best == i) & (scores[:, i] > threshold))
        for j in mine[suppress(boxes[mine], scores[mine, i], most_overlap)]:
            left, top, right, bottom = boxes[j].tolist()
            found.append(Detection(phrase, (left, top, right, bottom), float(scores[j, i])))
    return found


def suppress(boxes: Numbers, scores: Numbers, most_overlap: float) -> list[int]:
    """Which boxes (n, 4) stay, the best first: none overlaps a better one by an IoU above most_overlap."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if not kept or _iou(boxes[i], boxes[kept]).max() <= most_overlap:
            kept.append(i)
    return kept


def _iou(box: Numbers, others: Numbers) -> Numbers:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1)
    iou: Numbers = shared / (area - shared)
    return iou


def _one_text(phrases: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """All phrases as GroundingDINO wants them, and where each one's letters are."""
    text, spans = "", []
    for phrase in phrases:
        words = phrase.strip().lower()
        spans.append((len(text), len(text) + len(words)))
        text += f"{words}. "
    return text.rstrip(), spans


def _corners(boxes: Tensor) -> Numbers:
    """(n, 4) of middle x, middle y, width, height to left, top, right, bottom."""
    middle, size = np.split(numbers(boxes), 2, axis=1)
    return np.concatenate([middle - size / 2, middle + size / 2], axis=1)
