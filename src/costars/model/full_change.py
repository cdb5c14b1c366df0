"""Applies changes of whole weights to the rows of a batch: computed when a block begins, released when it ends.

The change of a layer takes as much memory as its weight, once for each adapter, in the layer's own dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from torch.nn.functional import conv2d, group_norm, layer_norm

from costars.model.weight_rules import RuleError, check_rule, compute_change
from costars.types import FullChange, LowRank, WeightRule

if TYPE_CHECKING:
    from costars.model.lora import RowAdapters, RowRun

CHANGEABLE = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)


class FullLayer:
    """The whole changes of one layer: weight (adapters, *weight.shape), bias (adapters, out); None if unchanged."""

    def __init__(self, state: RowAdapters, module: nn.Module, changes: Mapping[str, FullChange]) -> None:
        self.state, self.names = state, tuple(changes)
        self.weight, self.bias = _stack_changes(module, list(changes.values()))

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for run in self.state.runs(inputs[0], self.names):
            if isinstance(module, nn.Linear):
                self._multiply(inputs[0], output, run)
            else:
                self._add_per_adapter(module, inputs[0], output, run)
        return output

    def _multiply(self, x: Tensor, output: Tensor, run: RowRun) -> None:
        own = output[run.start : run.stop].view(run.last - run.first, -1, output.shape[-1])
        if self.weight is not None:
            rows = x[run.start : run.stop].reshape(run.last - run.first, -1, x.shape[-1])
            own.baddbmm_(rows, self.weight[run.first : run.last].transpose(1, 2))
        if self.bias is not None:
            own.add_(self.bias[run.first : run.last, None])

    def _add_per_adapter(self, module: nn.Module, x: Tensor, output: Tensor, run: RowRun) -> None:
        for i in range(run.first, run.last):
            start = run.start + (i - run.first) * run.rows_per_adapter
            rows = slice(start, start + run.rows_per_adapter)
            weight = None if self.weight is None else self.weight[i]
            output[rows] += _apply(module, x[rows], weight, None if self.bias is None else self.bias[i])

    def clear(self) -> None:
        """Release the changes, also where a traceback still refers to this layer."""
        self.weight = self.bias = None


def _apply(module: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """What a change of weight and bias adds to the output of a convolution or a norm."""
    if weight is None:
        assert bias is not None
        return bias if isinstance(module, nn.LayerNorm) else bias[:, None, None]
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        return conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)
    if isinstance(module, nn.GroupNorm):
        return group_norm(x, module.num_groups, weight, bias, module.eps)
    assert isinstance(module, nn.LayerNorm)
    return layer_norm(x, module.normalized_shape, weight, bias, module.eps)


def _stack_changes(module: nn.Module, changes: Sequence[FullChange]) -> tuple[Tensor | None, Tensor | None]:
    """The weight and bias changes of one layer, computed in float32 and kept in the layer's dtype."""
    weights: Tensor | None = None
    biases: Tensor | None = None
    with _own_weights(module) as (weight, bias):
        for i, change in enumerate(changes):
            own_weight, own_bias = sum_parts(change, weight, bias)
            if own_weight is not None:
                weights = weight.new_zeros((len(changes), *weight.shape)) if weights is None else weights
                weights[i] = own_weight
            if own_bias is not None:
                biases = weight.new_zeros((len(changes), len(weight))) if biases is None else biases
                biases[i] = own_bias
    return weights, biases


@contextmanager
def _own_weights(module: nn.Module) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The weight and bias of a layer, on the device where it computes."""
    with align_module_device(module):
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
        yield weight.detach(), None if bias is None else bias.detach()


def sum_parts(change: FullChange, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The changes of weight and bias in float32, on the weight's device. Raises RuleError if a part does not fit."""
    total: list[Tensor | None] = [None, None]
    for part, scale in change.parts:
        rule = part if isinstance(part, WeightRule) else _to_rule(part)
        for i, own in enumerate(compute_change(rule, weight, bias)):
            if own is not None:
                scaled = own if scale == 1 else own * scale
                before = total[i]
                total[i] = scaled if before is None else before + scaled
    return total[0], total[1]


def check_parts(change: FullChange, module: nn.Module) -> None:
    """Raise RuleError if a part does not fit the layer."""
    weight, bias = module.weight, module.bias
    if not isinstance(weight, Tensor):
        raise RuleError("has no weight in this model")
    assert bias is None or isinstance(bias, Tensor)
    for part, _ in change.parts:
        check_rule(part if isinstance(part, WeightRule) else _to_rule(part), weight, bias)


def _to_rule(entry: LowRank) -> WeightRule:
    return WeightRule("lora", {"down": entry.down, "up": entry.up, "scale": torch.tensor(1.0)})
