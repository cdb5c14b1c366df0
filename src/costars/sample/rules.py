"""Attention rules: pure functions of one layer's query, key and value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from costars.types import Attend, Where


@dataclass(frozen=True)
class BorrowLayout:
    """The target row attends as the source row does: it takes that row's query and key.

    Cross-attention in every layer for the first cross_share of the steps; self-attention only where
    there are at most self_tokens tokens, for the first self_share (OMG section 3.3 and official code:
    shares 1.0 and 0.4, 32 x 32 tokens at 1024 px). softmax(q k^T) v with the source's q and k is the
    source's attention map on the target's own values, so no map is ever stored.
    """

    source: int
    target: int
    cross_share: float
    self_share: float
    self_tokens: int

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, where: Where) -> Tensor:
        if not self._applies(query.shape[2], where):
            return attend(query, key, value)
        return attend(self._borrowed(query, where), self._borrowed(key, where), value)

    def _applies(self, tokens: int, where: Where) -> bool:
        if not all(where.rows.start <= row < where.rows.stop for row in (self.source, self.target)):
            return False
        if where.cross:
            return where.progress < self.cross_share
        return where.progress < self.self_share and tokens <= self.self_tokens

    def _borrowed(self, x: Tensor, where: Where) -> Tensor:
        x = x.clone()
        x[self.target - where.rows.start] = x[self.source - where.rows.start]
        return x


@dataclass
class RecordWords:
    """Plain attention that keeps the running mean of where one row's words look.

    columns {word: token positions}; maps are brought to size (h, w) and averaged over heads, layers
    and steps, as attention-based localisation does (Hertz et al. 2022, arXiv 2208.01626, section 3).
    """

    row: int
    columns: Mapping[str, list[int]]
    size: tuple[int, int]
    total: Tensor | None = None
    count: int = 0
    words: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.words = list(self.columns)

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, where: Where) -> Tensor:
        if where.cross and self.words and where.rows.start <= self.row < where.rows.stop:
            self._record(query[self.row - where.rows.start], key[self.row - where.rows.start])
        return attend(query, key, value)

    def _record(self, query: Tensor, key: Tensor) -> None:
        height, width = self.size
        side = math.sqrt(query.shape[1] / (height * width))
        grid = (round(height * side), round(width * side))
        if grid[0] * grid[1] != query.shape[1]:
            raise ValueError(f"{query.shape[1]} queries do not fit a picture of {height} x {width} cells")
        logits = query.float() @ key.float().transpose(1, 2) / math.sqrt(query.shape[-1])
        seen = logits.softmax(dim=-1).mean(dim=0)
        maps = torch.stack([seen[:, self.columns[w]].mean(dim=1).view(grid) for w in self.words])
        maps = interpolate(maps[None], self.size, mode="bilinear", align_corners=False)[0]
        self.total = maps if self.total is None else self.total + maps
        self.count += 1

    def means(self) -> dict[str, NDArray[np.float32]]:
        """{word: (h, w)} mean attention."""
        if self.total is None:
            return {}
        return {w: m.cpu().numpy() for w, m in zip(self.words, self.total / self.count, strict=True)}
