"""The rows of a batch: which text, adapter and latent each has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from costars.model.model import Model
from costars.model.predict import Conditioning, join_pooled
from costars.types import DenoisingPath, Text


@dataclass(frozen=True)
class Row:
    """One row of the batch: a path's text (or its negative text) on its latent."""

    path: DenoisingPath
    text: Text
    conditional: bool


@dataclass(frozen=True)
class Batch:
    """All rows with their conditioning, whose tokens are (r, l * t, d).

    Each of l cross-attention layers reads its own t tokens; with l = 1 all read the same.
    """

    rows: Sequence[Row]
    conditioning: Conditioning
    layers: int = 1

    def latents(self, latent: Tensor, step: int) -> Tensor:
        """(r, c, h, w): the common latent (1, c, h, w), or the stored one of a path that is replayed."""
        return torch.cat([latent if r.path.replay is None else r.path.replay[step : step + 1] for r in self.rows])

    def by_path(self, noise: Tensor) -> Tensor:
        """(r, c, h, w) to (p, g, c, h, w) in the paths' order, without replays."""
        pairs: dict[int, dict[bool, Tensor]] = {}
        for row, value in zip(self.rows, noise, strict=True):
            if row.path.replay is None:
                pairs.setdefault(id(row.path), {})[row.conditional] = value
        return torch.stack([torch.stack([pair[half] for half in sorted(pair)]) for pair in pairs.values()])


def make_rows(paths: Sequence[DenoisingPath]) -> list[Row]:
    """The rows of these paths, path by path, each path's conditional row first.

    Rows of one adapter are then neighbours, and so are a replayed layout and the global path's conditional row.
    """
    rows = list[Row]()
    for path in paths:
        rows.append(Row(path, path.text, True))
        if path.negative is not None:
            rows.append(Row(path, path.negative, False))
    return rows


def conditional_rows(paths: Sequence[DenoisingPath]) -> list[int]:
    """The index of each path's conditional row in the batch."""
    return [i for i, row in enumerate(make_rows(paths)) if row.conditional]


def locate_tokens(paths: Sequence[DenoisingPath], text: Text, positions: Sequence[int]) -> list[int]:
    """Positions of these tokens of a text in the rows of a batch: once, or repeated beside a longer text."""
    own = text.tokens.shape[1]
    return [first + p for first in range(0, _row_length(paths), own) for p in positions]


def _row_length(paths: Sequence[DenoisingPath]) -> int:
    """Tokens of each row: a length that every text fits into a whole number of times."""
    return math.lcm(*(r.text.tokens.shape[1] for r in make_rows(paths)))


def make_batch(model: Model, paths: Sequence[DenoisingPath], size_px: tuple[int, int]) -> Batch:
    """The batch of these paths for a picture of (width, height)."""
    rows, length = make_rows(paths), _row_length(paths)
    # Attention to a repeated text equals attention to the text itself.
    repeated = [r.text.tokens.repeat(1, length // r.text.tokens.shape[1], 1) for r in rows]
    layers = max(len(tokens) for tokens in repeated)
    tokens = torch.stack([tokens.expand(layers, -1, -1) for tokens in repeated]).flatten(1, 2)
    pooled = join_pooled(r.text.pooled for r in rows)
    return Batch(rows, Conditioning(tokens, pooled, model.size_ids(size_px)), layers)
