"""The judge: says of a figure in a world picture what it is, what it wears and who it is.

It is trained on rendered truth alone (training/judge.py) and never sees a drawn picture
before it judges one. Identity is a unit vector learned with the additive angular margin of ArcFace
(Deng et al. 2019, arXiv 1801.07698, Eq. 3): the cosine of two figures says how alike they are.
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

from costars.builtin.nets import block, loaded
from costars.errors import RegionError
from costars.types import MaskArray
from costars_world.render.identity import ATTRIBUTES, CLASSES, Identity

CROP_PX = 64
MARGIN = 0.08  # share of the box's longer side that is added around a figure
EMBEDDING = 64


def _columns() -> dict[tuple[str, str], slice]:
    """Where each class's attributes stand in the network's one long output."""
    out, start = {}, len(CLASSES)
    for class_name, attributes in ATTRIBUTES.items():
        for attribute, values in attributes.items():
            out[class_name, attribute] = slice(start, start + len(values))
            start += len(values)
    return out


COLUMNS = _columns()
SCORES = max(columns.stop for columns in COLUMNS.values())


@dataclass(frozen=True)
class Verdict:
    """What the judge sees: embedding is (64,) of unit length, chances {attribute: of the value it names}."""

    identity: Identity
    embedding: Tensor
    chances: Mapping[str, float]


JUDGE_WEIGHTS = Path(__file__).parent / "weights" / "model.safetensors"


class JudgeNet(nn.Module):
    """(n, 4, 64, 64) crops (colour in [-1, 1], then the mask) to scores (n, s) and embeddings (n, 64)."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 192)) -> None:
        super().__init__()
        self.body = nn.Sequential(*(block(i, o, stride=2) for i, o in zip((4, *widths[:-1]), widths, strict=True)))
        flat = widths[-1] * (CROP_PX // 2 ** len(widths)) ** 2
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(flat, 256), nn.SiLU())
        self.scores = nn.Linear(256, SCORES)
        self.embedding = nn.Linear(256, EMBEDDING)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Raw scores of classes and attributes, and unit vectors."""
        seen = self.trunk(self.body(crops))
        return self.scores(seen).float(), normalize(self.embedding(seen).float(), dim=-1)


def crop(image: Image.Image, mask: MaskArray) -> np.ndarray:
    """(64, 64, 4) uint8: the figure on grey in a square around its mask, and the mask itself.

    Raises RegionError where the mask is empty.
    """
    rows, columns = (np.flatnonzero((mask >= 0.5).any(axis=a)) for a in (1, 0))
    if not len(rows):
        raise RegionError("the mask of the figure to judge is empty; give one that covers it")
    half = (max(np.ptp(rows), np.ptp(columns)) + 1) * (0.5 + MARGIN)
    y, x = (rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2
    figure = image.convert("RGB")
    figure.putalpha(Image.fromarray((np.clip(mask, 0, 1) * 255).astype(np.uint8)))
    square = figure.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
    square = square.resize((CROP_PX, CROP_PX), Image.Resampling.BILINEAR)
    paper = Image.new("RGBA", square.size, (128, 128, 128, 0))
    return np.asarray(Image.composite(square, paper, square.getchannel("A")))


def as_input(crops: Tensor) -> Tensor:
    """(n, 64, 64, 4) uint8 to the network's (n, 4, 64, 64)."""
    return crops.permute(0, 3, 1, 2).float().div(127.5).sub(1)


@dataclass(frozen=True)
class Judge:
    """The network with its device."""

    net: JudgeNet
    device: torch.device

    @torch.no_grad()
    def __call__(self, figures: Sequence[tuple[Image.Image, MaskArray]]) -> list[Verdict]:
        """One verdict for each (picture, mask of the figure)."""
        if not figures:
            return []
        crops = torch.from_numpy(np.stack([crop(image, mask) for image, mask in figures]))
        scores, embeddings = (t.cpu() for t in self.net(as_input(crops).to(self.device)))
        return [_verdict(s, e) for s, e in zip(scores, embeddings, strict=True)]

    def embed(self, figures: Sequence[tuple[Image.Image, MaskArray]]) -> Tensor:
        """(n, 64) unit vectors, one for each figure."""
        return torch.stack([verdict.embedding for verdict in self(figures)])


def _verdict(scores: Tensor, embedding: Tensor) -> Verdict:
    class_name = CLASSES[int(scores[: len(CLASSES)].argmax())]
    named, chances = {}, {}
    for attribute, values in ATTRIBUTES[class_name].items():
        chance = scores[COLUMNS[class_name, attribute]].softmax(dim=0)
        best = int(chance.argmax())
        named[attribute], chances[attribute] = values[best], float(chance[best])
    return Verdict(Identity(class_name, named), embedding, chances)


def load_judge(path: Path, device: torch.device) -> Judge:
    """The judge from its weights; raises ModelError if the file is missing or damaged."""
    return Judge(loaded(JudgeNet(), path, "judge", device), device)
