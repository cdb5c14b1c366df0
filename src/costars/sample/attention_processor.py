"""An attention processor that asks a rule what each layer may see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from costars.model.families import cross_layer_index
from costars.types import Attend, AttentionRule, Where


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; (rows, heads, tokens, d) each, the bias (rows, 1, q tokens, k tokens)."""
    return scaled_dot_product_attention(query, key, value, attn_mask=bias)


def plain(attend: Attend, query: Tensor, key: Tensor, value: Tensor, where: Where) -> Tensor:
    """The rule that changes nothing."""
    return attend(query, key, value)


class Moment:
    """When and for which rows the next call is made; the loop sets it, the layers read it.

    layers is how many cross-attention layers read tokens of their own, 1 where all read the same.
    """

    progress = 0.0
    step = 0
    rows = slice(0, 0)
    layers = 1


class _Processor:
    """diffusers' processor protocol around a rule; equal to the stock one when the rule is plain."""

    def __init__(self, rule: AttentionRule, layer: str, number: int, moment: Moment) -> None:
        self.rule, self.layer, self.number, self.moment = rule, layer, number, moment

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        cross = encoder_hidden_states is not None
        context = hidden_states if encoder_hidden_states is None else self._own(encoder_hidden_states)
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        moment = self.moment
        where = Where(self.layer, cross, moment.progress, moment.rows, moment.step)
        out = self.rule(attend, query, key, value, where).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected / attn.rescale_output_factor

    def _own(self, tokens: Tensor) -> Tensor:
        """(rows, l * t, d) to the (rows, t, d) that this cross-attention layer reads."""
        each = tokens.shape[1] // self.moment.layers
        return tokens[:, self.number * each : (self.number + 1) * each]


@contextmanager
def attention_rule(layers: Sequence[tuple[str, Attention]], rule: AttentionRule, moment: Moment) -> Iterator[None]:
    """Within the block these layers follow the rule."""
    before = [layer.processor for _, layer in layers]
    numbers = cross_layer_index(layers) if moment.layers > 1 else {}
    for name, layer in layers:
        layer.set_processor(_Processor(rule, name, numbers.get(name, 0), moment))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for (_, layer), processor in zip(layers, before, strict=True):
            layer.set_processor(processor)
