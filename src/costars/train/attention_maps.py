"""Record attention maps of words while a model trains, with gradients."""

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
from costars.sample.attention_processor import UNetCall, attention_rule
from costars.sample.attention_rules import find_grid
from costars.types import Attend, AttentionContext

Columns = Sequence[Sequence[Sequence[int]]]  # by row, by word: token positions


@dataclass
class AttentionMaps:
    """Cross-attention of n words: layers {name: (b, n, queries)}, means over heads and over a word's tokens."""

    layers: dict[str, Tensor] = field(default_factory=dict)

    def by_size(self, shape: Sequence[int]) -> dict[int, Tensor]:
        """{queries: (b, n, h, w)}, the mean over the layers of each resolution, for latents of shape (..., h, w)."""
        sizes: dict[int, list[Tensor]] = {}
        for attention in self.layers.values():
            sizes.setdefault(attention.shape[-1], []).append(attention)
        means = {queries: torch.stack(maps).mean(dim=0) for queries, maps in sizes.items()}
        return {queries: mean.unflatten(-1, find_grid(queries, shape[-2:])) for queries, mean in means.items()}


@dataclass
class SelfAttention:
    """Self-attention (queries, queries) summed over layers, rows and calls, a mean over heads; None before a call."""

    queries: int
    total: Tensor | None = None


@dataclass
class AttentionRecorder:
    """An attention rule that computes the attention probabilities explicitly and records them on request.

    Nothing is recorded outside of `recording` and `recording_self_attention`. The mid block is recorded only with
    include_middle.
    """

    include_middle: bool = False
    _maps: AttentionMaps | None = None
    _token_weights: Tensor | None = None  # (b, n, t): the weight of each token in the mean of a word
    _self_attention: SelfAttention | None = None

    @contextmanager
    def recording(self, columns: Columns, num_tokens: int) -> Iterator[AttentionMaps]:
        """Record the words at these token positions of texts of num_tokens tokens, for the first len(columns) rows.

        The maps hold the last call of the UNet; they stay valid after the block.
        """
        weights = torch.zeros(len(columns), max(len(words) for words in columns), num_tokens)
        for row, words in enumerate(columns):
            for number, positions in enumerate(words):
                weights[row, number, list(positions)] = 1 / max(1, len(positions))
        self._maps, self._token_weights = AttentionMaps(), weights
        try:
            yield self._maps
        finally:
            self._maps, self._token_weights = None, None

    @contextmanager
    def recording_self_attention(self, queries: int) -> Iterator[SelfAttention]:
        """Record the self-attention of the layers with this number of queries."""
        self._self_attention = SelfAttention(queries)
        try:
            yield self._self_attention
        finally:
            self._self_attention = None

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
        """Attention of one layer (`AttentionRule`)."""
        recordable = self.include_middle or not is_middle(context.layer)
        records_cross = recordable and context.cross and self._token_weights is not None
        related = self._self_attention
        records_self = recordable and not context.cross and related is not None and query.shape[2] == related.queries
        if not (records_cross or records_self) and query.device.type != "cpu":
            return attend(query, key, value)
        probabilities = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        if records_cross:
            self._record_cross(context.layer, probabilities)
        if records_self and related is not None:
            total = probabilities.float().mean(dim=1).sum(dim=0)
            related.total = total if related.total is None else related.total + total
        return probabilities.to(value.dtype) @ value

    def _record_cross(self, layer: str, probabilities: Tensor) -> None:
        assert self._token_weights is not None and self._maps is not None
        attention = probabilities[: len(self._token_weights)].float().mean(dim=1)
        with torch.autocast(attention.device.type, enabled=False):
            self._maps.layers[layer] = self._token_weights.to(attention) @ attention.transpose(1, 2)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts of a checkpointed layer's forward pass and of its recomputation (`torch.utils.checkpoint`).

        The recomputation takes the same path as the forward pass did, whatever is recorded by then.
        """
        return nullcontext(), self._replaying(self._token_weights)

    @contextmanager
    def _replaying(self, token_weights: Tensor | None) -> Iterator[None]:
        current = self._maps, self._token_weights
        self._maps, self._token_weights = AttentionMaps(), token_weights
        try:
            yield
        finally:
            self._maps, self._token_weights = current


@contextmanager
def attention_recorder(
    unet: UNet2DConditionModel, layers: int = 1, include_middle: bool = False
) -> Iterator[AttentionRecorder]:
    """Install a recorder on the UNet for the block.

    layers is the number of cross-attention layers with texts of their own, 1 if all read the same text. The mid block
    has the largest cells: Mix-of-Show includes it, Break-a-Scene does not.
    """
    recorder = AttentionRecorder(include_middle)
    with attention_rule(attention_layers(unet), recorder, UNetCall(layers=layers)):
        if not unet.is_gradient_checkpointing:
            yield recorder
            return
        contexts = recorder.checkpoint_contexts
        unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, context_fn=contexts))
        try:
            yield recorder
        finally:
            unet.enable_gradient_checkpointing()
