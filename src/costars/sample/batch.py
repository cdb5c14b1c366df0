"""The rows of a batch: which text, adapter and latent each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

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

    Each of l cross-attention layers reads its own t tokens; with l = 1 all read the same. t is the length of the
    longest text; the others are padded with zeros, which the conditioning's mask hides from attention.
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


def make_batch(model: Model, paths: Sequence[DenoisingPath], size_px: tuple[int, int]) -> Batch:
    """The batch of these paths for a picture of (width, height)."""
    rows = make_rows(paths)
    texts = [row.text.tokens for row in rows]
    layers, lengths = max(len(tokens) for tokens in texts), tuple(tokens.shape[1] for tokens in texts)
    padded = [pad(tokens, (0, 0, 0, max(lengths) - tokens.shape[1])) for tokens in texts]
    tokens = torch.stack([tokens.expand(layers, -1, -1) for tokens in padded]).flatten(1, 2)
    pooled = join_pooled(r.text.pooled for r in rows)
    conditioning = Conditioning(tokens, pooled, model.size_ids(size_px))
    if len({*lengths}) > 1:
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        conditioning = replace(conditioning, lengths=lengths, mask=mask.to(tokens))
    return Batch(rows, conditioning, layers)
