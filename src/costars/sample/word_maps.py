"""Where the words of a prompt are in a picture, by its cross-attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from costars.model.families import is_middle
from costars.sample.attention_rules import find_grid
from costars.types import Attend, AttentionContext

LAYERS_PER_BATCH = 10  # computed together; SDXL's attention to the words then takes 63 MB in float32


@dataclass
class RecordWordMaps:
    """The rule that changes nothing and averages one row's attention to each word.

    columns {word: token positions}; maps are resized to size (h, w) and averaged over heads, layers and steps, as
    attention-based localisation does (Hertz et al. 2022, arXiv 2208.01626, section 3). With tokens, only layers
    with this number of queries count, without the middle block. With standardize, layers of at least a quarter of
    the cells count, each map with mean 0 and deviation 1, because layers differ in the strength of their attention.
    text_tokens is the length of the row's text, where it is padded to that of a longer one.
    """

    row: int
    columns: Mapping[str, list[int]]
    size: tuple[int, int]
    tokens: int | None = None
    standardize: bool = False
    text_tokens: int | None = None
    totals: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    words: list[str] = field(init=False)
    _pending: list[tuple[str, Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)
    _word_matrices: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.words = list(self.columns)

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
        has_row = context.rows.start <= self.row < context.rows.stop
        if context.cross and self.words and has_row and self._counts(query.shape[2], context.layer):
            row = self.row - context.rows.start
            self._record(context.layer, query[row], key[row, :, : self.text_tokens])
        return attend(query, key, value)

    def _counts(self, tokens: int, layer: str) -> bool:
        if self.standardize and tokens * 4 < self.size[0] * self.size[1]:
            return False
        return self.tokens is None or (tokens == self.tokens and not is_middle(layer))

    def _record(self, layer: str, query: Tensor, key: Tensor) -> None:
        find_grid(query.shape[1], self.size)  # raises here for a layer that does not fit
        if self._pending and self._pending[0][1].shape != query.shape:
            self._add_pending()
        self._pending.append((layer, query, key))
        self.counts[layer] = self.counts.get(layer, 0) + 1
        if len(self._pending) == LAYERS_PER_BATCH:
            self._add_pending()

    def _add_pending(self) -> None:
        """Add the maps of all pending layers at once: one by one, a GPU would mostly launch small kernels."""
        layers, queries, keys = zip(*self._pending, strict=True)
        self._pending.clear()
        query, key = torch.stack(queries).float(), torch.stack(keys).float()
        logits = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        attention = logits.softmax(dim=-1).mean(dim=1)
        maps = (attention @ self._word_matrix(attention)).transpose(1, 2)
        for layer, own in zip(layers, maps.unflatten(2, find_grid(query.shape[2], self.size)), strict=True):
            self.totals[layer] = own + self.totals.get(layer, 0)

    def _word_matrix(self, attention: Tensor) -> Tensor:
        """(tokens, words): each word's column holds the share of each of its tokens."""
        tokens = attention.shape[-1]
        if tokens not in self._word_matrices:
            matrix = torch.zeros(tokens, len(self.words))
            for i, word in enumerate(self.words):
                for column in self.columns[word]:
                    matrix[column, i] += 1 / len(self.columns[word])
            self._word_matrices[tokens] = matrix.to(attention.device)
        return self._word_matrices[tokens]

    def means(self) -> dict[str, NDArray[np.float32]]:
        """{word: (h, w)} mean attention."""
        if self._pending:
            self._add_pending()
        if not self.totals:
            return {}
        if self.standardize:
            layers = [standardize_maps(total) for total in self.totals.values()]
            shares = [1 / len(layers)] * len(layers)
        else:
            layers, calls = list(self.totals.values()), sum(self.counts.values())
            shares = [1 / calls] * len(layers)
        resized = [interpolate(maps[None], self.size, mode="bilinear", align_corners=False)[0] for maps in layers]
        mean = sum(maps * share for maps, share in zip(resized, shares, strict=True))
        assert isinstance(mean, Tensor)
        return {word: each.cpu().numpy() for word, each in zip(self.words, mean, strict=True)}


def standardize_maps(maps: Tensor) -> Tensor:
    """Each of (n, ..., h, w) with mean 0 and deviation 1."""
    mean, deviation = maps.mean(dim=(-2, -1), keepdim=True), maps.std(dim=(-2, -1), keepdim=True)
    return (maps - mean) / deviation.clamp_min(1e-12)
