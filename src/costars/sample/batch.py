"""The rows of one UNet call: which text, adapter and picture each has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from costars.model.controlnet import residuals
from costars.model.lora import RowAdapters
from costars.model.model import Model
from costars.model.offload import Portion
from costars.sample.attention_processor import Moment
from costars.types import ControlNet, Path, Text


@dataclass(frozen=True)
class Row:
    """One row of the batch: a path's text (or its negative text) on its latent."""

    path: Path
    text: Text
    conditional: bool


@dataclass(frozen=True)
class Batch:
    """All rows with what the UNet reads beside the latent: tokens (r, l * t, d), and what SDXL adds to them.

    Of the tokens each of l cross-attention layers reads its own t, or all read the same where l is 1.
    """

    rows: Sequence[Row]
    tokens: Tensor
    added: Mapping[str, Tensor]
    layers: int = 1

    def samples(self, latent: Tensor, step: int) -> Tensor:
        """(r, c, h, w): the common latent, or the stored one of a path that is replayed."""
        return torch.cat([latent if r.path.replay is None else r.path.replay[step : step + 1] for r in self.rows])

    def noise(
        self,
        model: Model,
        sample: Tensor,
        t: Tensor,
        moment: Moment,
        adapters: RowAdapters | None,
        controls: Sequence[ControlNet],
        portion: Portion,
    ) -> Tensor:
        """(r, c, h, w) predicted noise, in calls of as many rows as this portion allows."""
        parts, first = list[Tensor](), 0
        while first < len(self.rows):
            size = portion.size(len(self.rows) - first)
            moment.rows = here = slice(first, first + size)
            first += size
            tokens, added = self.tokens[here], {name: value[here] for name, value in self.added.items()} or None
            guided = [r.path.controlled for r in self.rows[here]]
            first_layers = tokens[:, : tokens.shape[1] // self.layers]
            worn = nullcontext() if adapters is None else adapters.on([r.path.adapter for r in self.rows[here]])
            with portion.measured(size), worn:
                extra = residuals(controls, sample[here], t, first_layers, added, guided, moment.progress)
                parts.append(model.unet(sample[here], t, tokens, added_cond_kwargs=added, **extra).sample)
        return torch.cat(parts)

    def by_path(self, noise: Tensor) -> Tensor:
        """(r, c, h, w) to (p, g, c, h, w) in the paths' order, replays left out."""
        pairs: dict[int, dict[bool, Tensor]] = {}
        for row, value in zip(self.rows, noise, strict=True):
            if row.path.replay is None:
                pairs.setdefault(id(row.path), {})[row.conditional] = value
        return torch.stack([torch.stack([pair[half] for half in sorted(pair)]) for pair in pairs.values()])


def rows_of(paths: Sequence[Path]) -> list[Row]:
    """The batch's rows, conditional ones first: a replayed layout and the global path stay side by side."""
    conditional = [Row(p, p.text, True) for p in paths]
    return [*conditional, *(Row(p, p.negative, False) for p in paths if p.negative is not None)]


def positions_in(paths: Sequence[Path], text: Text, positions: Sequence[int]) -> list[int]:
    """Where these tokens of a text stand in the rows of a batch: once, or several times beside a longer text."""
    own = text.tokens.shape[1]
    return [first + p for first in range(0, _longest(paths), own) for p in positions]


def _longest(paths: Sequence[Path]) -> int:
    """Tokens of each row: a number that every text fits into a whole number of times."""
    return math.lcm(*(r.text.tokens.shape[1] for r in rows_of(paths)))


def batch_of(model: Model, paths: Sequence[Path], size_px: tuple[int, int]) -> Batch:
    """The rows of these paths on a picture of (width, height)."""
    rows, longest = rows_of(paths), _longest(paths)
    # A text said several times over is attended to exactly as if it were said once.
    repeated = [r.text.tokens.repeat(1, longest // r.text.tokens.shape[1], 1) for r in rows]
    layers = max(len(tokens) for tokens in repeated)
    tokens = torch.stack([tokens.expand(layers, -1, -1) for tokens in repeated]).flatten(1, 2)
    pooled = [r.text.pooled for r in rows if r.text.pooled is not None]
    if not pooled:
        return Batch(rows, tokens, {}, layers)
    size_ids = model.size_ids(size_px).expand(len(rows), -1)
    return Batch(rows, tokens, {"text_embeds": torch.cat(pooled), "time_ids": size_ids}, layers)
