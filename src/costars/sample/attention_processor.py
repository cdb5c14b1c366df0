"""An attention processor that asks a rule what each layer may see."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from costars.model.families import cross_layer_index
from costars.types import Attend, AttentionContext, AttentionRule

# {(layer, first row, stop): (key, value)} of the text, which is the same in every step.
TextCache = MutableMapping[tuple[str, int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class UNetCall:
    """One UNet call: which rows of the batch, in which step, and which share of the steps is done.

    layers is the number of cross-attention layers that read tokens of their own, 1 if all read the same.
    text_cache keeps the text's keys and values from call to call; None where the text or the weights may change.
    """

    rows: slice = field(default_factory=lambda: slice(0, 0))
    step: int = 0
    progress: float = 0.0
    layers: int = 1
    text_cache: TextCache | None = None


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; (rows, heads, tokens, d) each, the bias (rows, 1, q tokens, k tokens)."""
    return scaled_dot_product_attention(query, key, value, attn_mask=bias)


def stock_attention(attend: Attend, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
    """The rule that changes nothing."""
    return attend(query, key, value)


class _Processor:
    """diffusers' processor protocol around a rule; equal to diffusers' own with `stock_attention`."""

    def __init__(self, rule: AttentionRule, layer: str, number: int, call: UNetCall) -> None:
        self.rule, self.layer, self.number, self.call = rule, layer, number, call

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        call, cross = self.call, encoder_hidden_states is not None
        query = _split_heads(attn, attn.to_q(hidden_states))
        if encoder_hidden_states is None:
            key, value = (_split_heads(attn, project(hidden_states)) for project in (attn.to_k, attn.to_v))
        else:
            key, value = self._text_key_value(attn, encoder_hidden_states)
        context = AttentionContext(self.layer, cross, call.progress, call.rows, call.step)
        masked = attend if attention_mask is None else _hide_padding(attention_mask)
        out = self.rule(masked, query, key, value, context).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected if attn.rescale_output_factor == 1 else projected / attn.rescale_output_factor

    def _text_key_value(self, attn: Attention, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of the text: from the cache where there is one, computed at its first use."""
        cache, place = self.call.text_cache, (self.layer, self.call.rows.start, self.call.rows.stop)
        if cache is not None and place in cache:
            return cache[place]
        own = self._own_tokens(tokens)
        pair = _split_heads(attn, attn.to_k(own)), _split_heads(attn, attn.to_v(own))
        if cache is not None:
            cache[place] = pair
        return pair

    def _own_tokens(self, tokens: Tensor) -> Tensor:
        """(rows, l * t, d) to the (rows, t, d) that this cross-attention layer reads."""
        each = tokens.shape[1] // self.call.layers
        return tokens[:, self.number * each : (self.number + 1) * each]


def _hide_padding(mask: Tensor) -> Attend:
    """Attention with the bias (rows, 1, k tokens) of diffusers' encoder_attention_mask added to every bias."""

    def masked(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        padding = mask[:, None].to(query)
        return attend(query, key, value, padding if bias is None else bias + padding)

    return masked


def _split_heads(attn: Attention, x: Tensor) -> Tensor:
    """(rows, tokens, heads * d) to (rows, heads, tokens, d)."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


@contextmanager
def attention_rule(layers: Sequence[tuple[str, Attention]], rule: AttentionRule, call: UNetCall) -> Iterator[None]:
    """Within the block these layers follow the rule; it is for one UNet call, or for equal ones."""
    before = [layer.processor for _, layer in layers]
    numbers = cross_layer_index(layers) if call.layers > 1 else {}
    for name, layer in layers:
        layer.set_processor(_Processor(rule, name, numbers.get(name, 0), call))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for (_, layer), processor in zip(layers, before, strict=True):
            layer.set_processor(processor)
