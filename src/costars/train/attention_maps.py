"""Where words look while a model trains: cross-attention as plain products, with gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from costars.model.families import attention_layers, is_middle
from costars.sample.attention_processor import Moment, attention_rule
from costars.sample.attention_rules import grid_of
from costars.types import Attend, Where

Columns = Sequence[Sequence[Sequence[int]]]  # by row, by word: token positions


@dataclass
class Gaze:
    """An attention rule that keeps how much each query looks at some words of its row.

    The first rows of a call are looked at; maps {layer: (b, n, queries)} are means over heads, and over a
    word's tokens. Without middle the UNet's mid block is left out. kin (kin_of, kin_of) sums how much cells attend
    to each other in layers of so many queries, where kin_of is not 0.
    """

    middle: bool = False
    maps: dict[str, Tensor] = field(default_factory=dict)
    picked: Tensor | None = None  # (b, n, t): what share of a word each token is
    kin_of: int = 0
    kin: Tensor | None = None

    def at(self, columns: Columns, tokens: int = 0) -> None:
        """Look at these columns of texts of so many tokens from now on; at none where there are none."""
        self.maps.clear()
        self.picked = None
        if not columns:
            return
        picked = torch.zeros(len(columns), max(len(words) for words in columns), tokens)
        for row, words in enumerate(columns):
            for number, positions in enumerate(words):
                picked[row, number, list(positions)] = 1 / max(1, len(positions))
        self.picked = picked

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, where: Where) -> Tensor:
        inside = self.middle or not is_middle(where.layer)
        wanted = inside and where.cross and self.picked is not None
        related = inside and not where.cross and query.shape[2] == self.kin_of
        if not (wanted or related) and query.device.type != "cpu":
            return attend(query, key, value)
        seen = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        if wanted and self.picked is not None:
            looked = seen[: len(self.picked)].float().mean(dim=1)
            with torch.autocast(looked.device.type, enabled=False):
                self.maps[where.layer] = self.picked.to(looked) @ looked.transpose(1, 2)
        if related:
            each = seen.float().mean(dim=1).sum(dim=0)
            self.kin = each if self.kin is None else self.kin + each
        return seen.to(value.dtype) @ value

    def twice(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Around a checkpointed layer's work, and around the same work in the backward pass: it looks as it did."""
        return nullcontext(), self._again(self.picked)

    @contextmanager
    def relating(self, queries: int) -> Iterator[None]:
        """Within the block kin gathers, anew."""
        self.kin_of, self.kin = queries, None
        try:
            yield
        finally:
            self.kin_of = 0

    @contextmanager
    def _again(self, picked: Tensor | None) -> Iterator[None]:
        now, self.picked, self.maps = (self.picked, self.maps), picked, {}
        try:
            yield
        finally:
            self.picked, self.maps = now

    def by_size(self, shape: Sequence[int]) -> dict[int, Tensor]:
        """{queries: (b, n, h, w)}, the mean of the layers of each resolution, for latents of shape (..., h, w)."""
        sizes: dict[int, list[Tensor]] = {}
        for looked in self.maps.values():
            sizes.setdefault(looked.shape[-1], []).append(looked)
        means = {queries: torch.stack(maps).mean(dim=0) for queries, maps in sizes.items()}
        return {queries: mean.unflatten(-1, grid_of(queries, shape[-2:])) for queries, mean in means.items()}


@contextmanager
def gazing(unet: UNet2DConditionModel, layers: int, middle: bool = False) -> Iterator[Gaze]:
    """Within the block the UNet's attention is a gaze's; its texts have tokens for so many layers.

    The mid block's cells are the largest: Mix-of-Show looks at them too, Break-a-Scene does not.
    """
    gaze, moment = Gaze(middle), Moment()
    moment.layers = layers
    with attention_rule(attention_layers(unet), gaze, moment):
        if not unet.is_gradient_checkpointing:
            yield gaze
            return
        unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, context_fn=gaze.twice))
        try:
            yield gaze
        finally:
            unet.enable_gradient_checkpointing()
