"""The rows of one UNet call: which text, adapter and picture each has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from costars.model.controlnet import control_residuals
from costars.model.lora import RowAdapters
from costars.model.model import Model
from costars.model.offload import MicroBatcher
from costars.model.predict import Conditioning, join_pooled, predict_noise
from costars.sample.attention_processor import Moment
from costars.types import ControlNet, DenoisingPath, Text


@dataclass(frozen=True)
class Row:
    """One row of the batch: a path's text (or its negative text) on its latent."""

    path: DenoisingPath
    text: Text
    conditional: bool


@dataclass(frozen=True)
class Batch:
    """All rows with their conditioning; its tokens are (r, l * t, d).

    Each of l cross-attention layers reads its own t tokens; with l = 1 all read the same.
    """

    rows: Sequence[Row]
    conditioning: Conditioning
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
        micro_batcher: MicroBatcher,
    ) -> Tensor:
        """(r, c, h, w) predicted noise, in calls of as many rows as this portion allows."""
        parts, first = list[Tensor](), 0
        while first < len(self.rows):
            size = micro_batcher.size(len(self.rows) - first)
            moment.rows = here = slice(first, first + size)
            first += size
            own = self.conditioning.rows(here)
            first_layer = replace(own, tokens=own.tokens[:, : own.tokens.shape[1] // self.layers])
            guided = [r.path.controlled for r in self.rows[here]]
            worn = nullcontext() if adapters is None else adapters.on([r.path.adapter for r in self.rows[here]])
            with micro_batcher.measure(size), worn:
                residuals = control_residuals(controls, sample[here], t, first_layer, guided, moment.progress)
                parts.append(predict_noise(model.unet, sample[here], t, own, residuals))
        return torch.cat(parts)

    def by_path(self, noise: Tensor) -> Tensor:
        """(r, c, h, w) to (p, g, c, h, w) in the paths' order, replays left out."""
        pairs: dict[int, dict[bool, Tensor]] = {}
        for row, value in zip(self.rows, noise, strict=True):
            if row.path.replay is None:
                pairs.setdefault(id(row.path), {})[row.conditional] = value
        return torch.stack([torch.stack([pair[half] for half in sorted(pair)]) for pair in pairs.values()])


def rows_of(paths: Sequence[DenoisingPath]) -> list[Row]:
    """The batch's rows, conditional ones first: a replayed layout and the global path stay side by side."""
    conditional = [Row(p, p.text, True) for p in paths]
    return [*conditional, *(Row(p, p.negative, False) for p in paths if p.negative is not None)]


def positions_in(paths: Sequence[DenoisingPath], text: Text, positions: Sequence[int]) -> list[int]:
    """Where these tokens of a text stand in the rows of a batch: once, or several times beside a longer text."""
    own = text.tokens.shape[1]
    return [first + p for first in range(0, _longest(paths), own) for p in positions]


def _longest(paths: Sequence[DenoisingPath]) -> int:
    """Tokens of each row: a number that every text fits into a whole number of times."""
    return math.lcm(*(r.text.tokens.shape[1] for r in rows_of(paths)))


def batch_of(model: Model, paths: Sequence[DenoisingPath], size_px: tuple[int, int]) -> Batch:
    """The rows of these paths on a picture of (width, height)."""
    rows, longest = rows_of(paths), _longest(paths)
    # A text said several times over is attended to exactly as if it were said once.
    repeated = [r.text.tokens.repeat(1, longest // r.text.tokens.shape[1], 1) for r in rows]
    layers = max(len(tokens) for tokens in repeated)
    tokens = torch.stack([tokens.expand(layers, -1, -1) for tokens in repeated]).flatten(1, 2)
    pooled = join_pooled(r.text.pooled for r in rows)
    return Batch(rows, Conditioning(tokens, pooled, model.size_ids(size_px)), layers)
