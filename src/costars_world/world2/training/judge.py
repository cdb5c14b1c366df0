"""The judge of World 2: says of a figure what it is, what it looks like and who it is.

Identity is a unit vector learned with the additive angular margin of ArcFace (Deng et al. 2019,
arXiv 1801.07698, Eq. 3): the cosine of two figures says how alike they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from costars_world.world2.training.segmenter import block

CROP_PX = 64
EMBEDDING = 64
Attributes = Mapping[str, Mapping[str, Sequence[str]]]


def score_columns(attributes: Attributes) -> dict[tuple[str, str], slice]:
    """Where each class's attributes stand in the network's one long output; the classes come first."""
    out, start = {}, len(attributes)
    for class_name, table in attributes.items():
        for attribute, values in table.items():
            out[class_name, attribute] = slice(start, start + len(values))
            start += len(values)
    return out


def column_table(attributes: Attributes) -> Tensor:
    """(classes, most attributes, most values) int64: the column of each score, -1 where there is none."""
    most = max(len(table) for table in attributes.values())
    values = max(len(v) for table in attributes.values() for v in table.values())
    out = torch.full((len(attributes), most, values), -1)
    columns = score_columns(attributes)
    for c, (class_name, table) in enumerate(attributes.items()):
        for j, attribute in enumerate(table):
            found = columns[class_name, attribute]
            out[c, j, : found.stop - found.start] = torch.arange(found.start, found.stop)
    return out


class JudgeNet(nn.Module):
    """(n, 4, 64, 64) crops (colour in [-1, 1], then the mask) to scores (n, s) and embeddings (n, 64)."""

    def __init__(self, scores: int, widths: tuple[int, ...] = (32, 64, 128, 192)) -> None:
        super().__init__()
        self.body = nn.Sequential(*(block(i, o, stride=2) for i, o in zip((4, *widths[:-1]), widths, strict=True)))
        flat = widths[-1] * (CROP_PX // 2 ** len(widths)) ** 2
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(flat, 256), nn.SiLU())
        self.scores = nn.Linear(256, scores)
        self.embedding = nn.Linear(256, EMBEDDING)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Raw scores of classes and attributes, and unit vectors."""
        seen = self.trunk(self.body(crops))
        return self.scores(seen).float(), normalize(self.embedding(seen).float(), dim=-1)


def build_judge(attributes: Attributes) -> JudgeNet:
    """An untrained judge for these classes and attributes."""
    return JudgeNet(max(columns.stop for columns in score_columns(attributes).values()))


def as_input(crops: Tensor) -> Tensor:
    """(n, 64, 64, 4) uint8 to the network's (n, 4, 64, 64)."""
    return crops.permute(0, 3, 1, 2).float().div(127.5).sub(1)
