"""Attention rules: functions of one layer's query, key and value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from costars.sample.mask_blending import EDGE_SHARE
from costars.types import Attend, AttentionContext, AttentionRule


@dataclass(frozen=True)
class ReplaceAttention:
    """The target row uses the attention of the source row: its query and key on the target's own values.

    Cross-attention in every layer for the first cross_share of the steps; self-attention in layers of at most
    self_tokens tokens for the first self_share (OMG section 3.3 and official code: shares 1.0 and 0.4, 32 x 32
    tokens at 1024 px). softmax(q k^T) v with the source's q and k applies the source's attention map, so no map is
    stored.
    """

    source: int
    target: int
    cross_share: float
    self_share: float
    self_tokens: int
    _text_keys: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
        if not self._applies(query.shape[2], context):
            return attend(query, key, value)
        return attend(self._replace_row(query, context), self._replace_key(key, context), value)

    def _applies(self, tokens: int, context: AttentionContext) -> bool:
        if not all(context.rows.start <= row < context.rows.stop for row in (self.source, self.target)):
            return False
        if context.cross:
            return context.progress < self.cross_share
        return context.progress < self.self_share and tokens <= self.self_tokens

    def _replace_row(self, x: Tensor, context: AttentionContext) -> Tensor:
        source, target = self.source - context.rows.start, self.target - context.rows.start
        x = x.transpose(1, 2)  # as a layer has it in memory
        return torch.cat([x[:target], x[source : source + 1], x[target + 1 :]]).transpose(1, 2)

    def _replace_key(self, key: Tensor, context: AttentionContext) -> Tensor:
        """The replaced key; a text's key is the same tensor in every step, and is then replaced once."""
        if not context.cross:
            return self._replace_row(key, context)
        place = (context.layer, context.rows.start, context.rows.stop)
        if place not in self._text_keys or self._text_keys[place][0] is not key:
            self._text_keys[place] = key, self._replace_row(key, context)
        return self._text_keys[place][1]


@dataclass(frozen=True)
class TokenReach:
    """Cells that some tokens of a prompt reach: part (h, w) is the share of each latent cell, share that of the
    steps, counted from the first, in which they reach no further."""

    tokens: Sequence[int]
    part: Tensor
    share: float


@dataclass(frozen=True)
class TokenMask:
    """{row: reaches}: cells outside a reach get nothing from its tokens by cross-attention.

    It limits a member's own words to its mask, and keeps the others' class words out of it. Not in OMG, where a
    member's path may draw anybody anywhere, and the blend drops what lies outside its mask.
    """

    reaches: Mapping[int, Sequence[TokenReach]]
    _biases: dict[tuple[object, ...], Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
        acting = {
            row: tuple(reach for reach in reaches if context.progress < reach.share)
            for row, reaches in self.reaches.items()
            if context.rows.start <= row < context.rows.stop
        }
        if not context.cross or not any(acting.values()):
            return attend(query, key, value)
        counts = tuple(len(reaches) for reaches in acting.values())
        place = (context.rows.start, context.rows.stop, query.shape[2], counts)
        if place not in self._biases:
            self._biases[place] = _make_bias(acting, query, key.shape[2], context.rows.start)
        return attend(query, key, value, self._biases[place])


def _make_bias(reaches: Mapping[int, Sequence[TokenReach]], query: Tensor, tokens: int, first: int) -> Tensor:
    """(rows, 1, queries, tokens), minus infinity where a token does not reach; first is the number of the first row."""
    queries = query.shape[2]
    bias = query.new_zeros(len(query), 1, queries, tokens)
    for row, each in reaches.items():
        for reach in each:
            part = reach.part.to(query)
            cover = interpolate(part[None, None], find_grid(queries, part.shape), mode="area").flatten()
            outside = cover < min(EDGE_SHARE, float(cover.max()))  # if no cell is half covered, the fullest ones
            bias[row - first, 0, outside.nonzero(), torch.tensor(reach.tokens)] = -math.inf
    return bias


def chain_rules(first: AttentionRule, second: AttentionRule) -> AttentionRule:
    """The second rule attends with the query, key and value that the first asks for."""

    def rule(attend: Attend, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
        def inner(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
            assert bias is None, "only the second rule may add to the logits"
            return second(attend, query, key, value, context)

        return first(inner, query, key, value, context)

    return rule


def find_grid(tokens: int, size: Sequence[int]) -> tuple[int, int]:
    """(h, w) of so many queries for a latent of (h, w) cells; raises ValueError if they do not fit."""
    height, width = size
    while height * width > tokens and height * width > 1:
        height, width = -(-height // 2), -(-width // 2)  # as a convolution of stride 2 leaves them
    if height * width != tokens:
        raise ValueError(f"{tokens} queries do not fit a picture of {size[0]} x {size[1]} cells")
    return height, width
