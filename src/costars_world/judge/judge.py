"""The judge: predicts the class, the attributes and an identity embedding of a figure.

It is trained on rendered pictures only (training/judge.py), never on generated ones. Embeddings are unit vectors
learned with the additive angular margin of ArcFace (Deng et al. 2019, arXiv 1801.07698, Eq. 3); their cosine is
the similarity of two figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from costars.builtin.nets import conv_block, load_weights
from costars.types import MaskArray, RegionError
from costars_world.render.identity import ATTRIBUTES, CLASSES, Identity

CROP_PX = 64
CROP_MARGIN = 0.08  # added on each side of a figure, as a share of its box's longer side
EMBEDDING_DIM = 64


def _attribute_columns() -> dict[tuple[str, str], slice]:
    """Return the columns of each (class, attribute) in the network's output."""
    out, start = {}, len(CLASSES)
    for class_name, attributes in ATTRIBUTES.items():
        for attribute, values in attributes.items():
            out[class_name, attribute] = slice(start, start + len(values))
            start += len(values)
    return out


ATTRIBUTE_COLUMNS = _attribute_columns()
NUM_SCORES = max(columns.stop for columns in ATTRIBUTE_COLUMNS.values())


@dataclass(frozen=True)
class Verdict:
    """The judge's prediction for a figure.

    embedding is a unit vector (64,); probabilities maps each attribute to the probability of its predicted value.
    """

    identity: Identity
    embedding: Tensor
    probabilities: Mapping[str, float]


JUDGE_WEIGHTS = Path(__file__).parent / "weights" / "model.safetensors"


class JudgeNet(nn.Module):
    """Map crops (n, 4, 64, 64), colour in [-1, 1] and mask, to scores (n, s) and embeddings (n, 64)."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 192)) -> None:
        super().__init__()
        self.body = nn.Sequential(*(conv_block(i, o, stride=2) for i, o in zip((4, *widths[:-1]), widths, strict=True)))
        flat = widths[-1] * (CROP_PX // 2 ** len(widths)) ** 2
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(flat, 256), nn.SiLU())
        self.scores = nn.Linear(256, NUM_SCORES)
        self.embedding = nn.Linear(256, EMBEDDING_DIM)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of classes and attributes, and unit vectors."""
        features = self.trunk(self.body(crops))
        return self.scores(features).float(), normalize(self.embedding(features).float(), dim=-1)


def crop_figure(image: Image.Image, mask: MaskArray) -> np.ndarray:
    """Crop a square around the mask: (64, 64, 4) uint8, the figure on grey and its mask.

    Raises RegionError if the mask is empty.
    """
    rows, columns = (np.flatnonzero((mask >= 0.5).any(axis=a)) for a in (1, 0))
    if not len(rows):
        raise RegionError("the mask of the figure is empty; give a mask that covers the figure")
    half = (max(np.ptp(rows), np.ptp(columns)) + 1) * (0.5 + CROP_MARGIN)
    y, x = (rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2
    figure = image.convert("RGB")
    figure.putalpha(Image.fromarray((np.clip(mask, 0, 1) * 255).astype(np.uint8)))
    square = figure.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
    square = square.resize((CROP_PX, CROP_PX), Image.Resampling.BILINEAR)
    background = Image.new("RGBA", square.size, (128, 128, 128, 0))
    return np.asarray(Image.composite(square, background, square.getchannel("A")))


def crops_to_input(crops: Tensor) -> Tensor:
    """Convert crops (n, 64, 64, 4) uint8 to the network's input (n, 4, 64, 64) in [-1, 1]."""
    return crops.permute(0, 3, 1, 2).float().div(127.5).sub(1)


@dataclass(frozen=True)
class Judge:
    """The judge network on a device."""

    net: JudgeNet
    device: torch.device

    @torch.no_grad()
    def __call__(self, figures: Sequence[tuple[Image.Image, MaskArray]]) -> list[Verdict]:
        """Judge figures, each given as an image and its mask."""
        if not figures:
            return []
        crops = torch.from_numpy(np.stack([crop_figure(image, mask) for image, mask in figures]))
        scores, embeddings = (t.cpu() for t in self.net(crops_to_input(crops).to(self.device)))
        return [_make_verdict(s, e) for s, e in zip(scores, embeddings, strict=True)]

    def embed(self, figures: Sequence[tuple[Image.Image, MaskArray]]) -> Tensor:
        """Return the embeddings (n, 64) of figures."""
        return torch.stack([verdict.embedding for verdict in self(figures)])


def _make_verdict(scores: Tensor, embedding: Tensor) -> Verdict:
    class_name = CLASSES[int(scores[: len(CLASSES)].argmax())]
    predicted, probabilities = {}, {}
    for attribute, values in ATTRIBUTES[class_name].items():
        probability = scores[ATTRIBUTE_COLUMNS[class_name, attribute]].softmax(dim=0)
        best = int(probability.argmax())
        predicted[attribute], probabilities[attribute] = values[best], float(probability[best])
    return Verdict(Identity(class_name, predicted), embedding, probabilities)


def load_judge(path: Path, device: torch.device) -> Judge:
    """Load the judge. Raises ModelError if the file is missing or damaged."""
    return Judge(load_weights(JudgeNet(), path, "judge", device), device)
