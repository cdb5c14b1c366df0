"""Attention rules: pure functions of one layer's query, key and value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from costars.model.families import is_middle
from costars.sample.mask_blending import EDGE_SHARE
from costars.types import Attend, AttentionRule, Where


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


@dataclass(frozen=True)
class Reach:
    """How far some words of a prompt reach: token positions, part (h, w) the share of each latent cell that they
    reach, and the share of the steps, counted from the first, in which they reach no further."""

    tokens: Sequence[int]
    part: Tensor
    share: float


@dataclass(frozen=True)
class KeptWords:
    """Words that reach only a part of the picture, by row: cells outside it get nothing from them by cross-attention.

    So a member's own words keep to its mask, and the others' class words out of it. Not in OMG, where a
    member's path may draw anybody anywhere and what lies outside its mask is lost in the blend.
    """

    reaches: Mapping[int, Sequence[Reach]]
    _made: dict[tuple[object, ...], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, where: Where) -> Tensor:
        acting = {
            row: tuple(reach for reach in reaches if where.progress < reach.share)
            for row, reaches in self.reaches.items()
            if where.rows.start <= row < where.rows.stop
        }
        if not where.cross or not any(acting.values()):
            return attend(query, key, value)
        counts = tuple(len(reaches) for reaches in acting.values())
        made = (where.rows.start, where.rows.stop, query.shape[2], counts)
        if made not in self._made:
            self._made[made] = _bias(acting, query, key.shape[2], where.rows.start)
        return attend(query, key, value, self._made[made])


def _bias(reaches: Mapping[int, Sequence[Reach]], query: Tensor, words: int, first: int) -> Tensor:
    """(rows, 1, queries, words) minus infinity where a word does not reach; first is the number of the first row."""
    tokens = query.shape[2]
    bias = query.new_zeros(len(query), 1, tokens, words)
    for row, each in reaches.items():
        for reach in each:
            part = reach.part.to(query)
            cover = interpolate(part[None, None], grid_of(tokens, part.shape), mode="area").flatten()
            outside = cover < min(EDGE_SHARE, float(cover.max()))  # where none is half filled, the fullest
            bias[row - first, 0, outside.nonzero(), torch.tensor(reach.tokens)] = -math.inf
    return bias


def both(first: AttentionRule, second: AttentionRule) -> AttentionRule:
    """The second rule attends with the query, key and value that the first asks for."""

    def rule(attend: Attend, query: Tensor, key: Tensor, value: Tensor, where: Where) -> Tensor:
        def inner(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
            assert bias is None, "only the second rule may add to the logits"
            return second(attend, query, key, value, where)

        return first(inner, query, key, value, where)

    return rule


def grid_of(tokens: int, size: Sequence[int]) -> tuple[int, int]:
    """(h, w) of so many queries over a picture of size (h, w) cells; raises ValueError if they do not fit."""
    height, width = size
    while height * width > tokens and height * width > 1:
        height, width = -(-height // 2), -(-width // 2)  # as a convolution of stride 2 leaves them
    if height * width != tokens:
        raise ValueError(f"{tokens} queries do not fit a picture of {size[0]} x {size[1]} cells")
    return height, width


@dataclass
class RecordWords:
    """Plain attention that keeps the running mean of where one row's words look.

    columns {word: token positions}; maps are brought to size (h, w) and averaged over heads, layers
    and steps, as attention-based localisation does (Hertz et al. 2022, arXiv 2208.01626, section 3).
    With tokens, only layers of so many queries count, those of the way down and up. With even, layers of
    at least a quarter of the cells count, each map with mean 0 and spread 1: layers look with unlike strength.
    """

    row: int
    columns: Mapping[str, list[int]]
    size: tuple[int, int]
    tokens: int | None = None
    even: bool = False
    totals: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    words: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.words = list(self.columns)

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, where: Where) -> Tensor:
        mine = where.cross and bool(self.words) and where.rows.start <= self.row < where.rows.stop
        if mine and self._counts(query.shape[2], where.layer):
            self._record(where.layer, query[self.row - where.rows.start], key[self.row - where.rows.start])
        return attend(query, key, value)

    def _counts(self, tokens: int, layer: str) -> bool:
        if self.even and tokens * 4 < self.size[0] * self.size[1]:
            return False
        return self.tokens is None or (tokens == self.tokens and not is_middle(layer))

    def _record(self, layer: str, query: Tensor, key: Tensor) -> None:
        grid = grid_of(query.shape[1], self.size)
        logits = query.float() @ key.float().transpose(1, 2) / math.sqrt(query.shape[-1])
        seen = logits.softmax(dim=-1).mean(dim=0)
        maps = torch.stack([seen[:, self.columns[w]].mean(dim=1).view(grid) for w in self.words])
        self.totals[layer] = maps + self.totals.get(layer, 0)
        self.counts[layer] = self.counts.get(layer, 0) + 1

    def means(self) -> dict[str, NDArray[np.float32]]:
        """{word: (h, w)} mean attention."""
        if not self.totals:
            return {}
        if self.even:
            each = [evened(total) for total in self.totals.values()]
            shares = [1 / len(each)] * len(each)
        else:
            each, calls = list(self.totals.values()), sum(self.counts.values())
            shares = [1 / calls] * len(each)
        sized = [interpolate(m[None], self.size, mode="bilinear", align_corners=False)[0] for m in each]
        mean = sum(one * share for one, share in zip(sized, shares, strict=True))
        assert isinstance(mean, Tensor)
        return {w: m.cpu().numpy() for w, m in zip(self.words, mean, strict=True)}


def evened(maps: Tensor) -> Tensor:
    """Each of (n, ..., h, w) with mean 0 and spread 1."""
    mean, spread = maps.mean(dim=(-2, -1), keepdim=True), maps.std(dim=(-2, -1), keepdim=True)
    return (maps - mean) / spread.clamp_min(1e-12)
