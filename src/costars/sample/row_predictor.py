"""Predicting the noise of a batch: one UNet call, or several where memory asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from costars.model.controlnet import control_residuals
from costars.model.lora import RowAdapters
from costars.model.model import Model
from costars.model.offload import FIRST_ROWS, MicroBatcher
from costars.model.predict import predict_noise
from costars.sample.attention_processor import TextCache, UNetCall, attention_rule, stock_attention
from costars.sample.batch import Batch
from costars.types import AttentionRule, ControlNet


@dataclass(kw_only=True)
class RowPredictor:
    """Predicts the noise of a batch's rows, in calls of as many rows as fit.

    layers are the attention layers that follow the rule; without a rule the model's own processors stay. rows_used
    counts the rows of all calls.
    """

    model: Model
    batch: Batch
    layers: Sequence[tuple[str, Attention]]
    rule: AttentionRule | None
    adapters: RowAdapters | None
    controls: Sequence[ControlNet]
    micro_batcher: MicroBatcher
    rows_used: int = 0
    _text_cache: TextCache = field(default_factory=dict)
    _cached_rows: int = 0

    def predict(self, latents: Tensor, t: Tensor, step: int, progress: float) -> Tensor:
        """(r, c, h, w) predicted noise of the batch's latents at timestep t, in their number format.

        Only the networks compute in that of the weights. progress is the share of steps done.
        """
        parts, first, count = list[Tensor](), 0, len(self.batch.rows)
        if self.micro_batcher.must_measure(count):
            self._measure(latents, t, step, progress)
        if self.rows_per_call != self._cached_rows:  # the cache is by rows of a call
            self._text_cache, self._cached_rows = {}, self.rows_per_call
        while first < count:
            rows = slice(first, first + self.micro_batcher.size(count - first))
            first = rows.stop
            call = UNetCall(
                rows=rows, step=step, progress=progress, layers=self.batch.layers, text_cache=self._text_cache
            )
            parts.append(self._call(latents[rows], t, call, self.rule))
        return torch.cat(parts)

    def _measure(self, latents: Tensor, t: Tensor, step: int, progress: float) -> None:
        """Make a call of a few rows for its memory alone, so that all calls of a picture have the same rows."""
        rows = slice(0, FIRST_ROWS)
        call = UNetCall(rows=rows, step=step, progress=progress, layers=self.batch.layers)
        with self.micro_batcher.measure(FIRST_ROWS):
            self._call(latents[rows], t, call, None if self.rule is None else stock_attention)

    @property
    def rows_per_call(self) -> int:
        """Rows of the next UNet call."""
        return self.micro_batcher.size(len(self.batch.rows))

    def _call(self, latents: Tensor, t: Tensor, call: UNetCall, rule: AttentionRule | None) -> Tensor:
        batch, rows = self.batch, self.batch.rows[call.rows]
        own = batch.conditioning.rows(call.rows)
        first_layer = replace(own, tokens=own.tokens[:, : own.tokens.shape[1] // batch.layers])
        controlled = [row.path.controlled for row in rows]
        sample = latents.to(self.model.dtype)
        self.rows_used += len(rows)
        with (
            nullcontext() if self.adapters is None else self.adapters.on([row.path.adapter for row in rows]),
            nullcontext() if rule is None else attention_rule(self.layers, rule, call),
        ):
            residuals = control_residuals(self.controls, sample, t, first_layer, controlled, call.progress)
            return predict_noise(self.model.unet, sample, t, own, residuals).to(latents.dtype)
