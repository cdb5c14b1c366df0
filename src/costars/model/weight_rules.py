"""Formulas of the adapters that change a whole weight: what a layer's weight W and bias b change by.

W is (out, in) or (out, in, kh, kw), of a norm (out,); b is (out,). RULES lists the formulas by the kind of a
WeightRule. Every formula takes tensors by role in float32; numbers are tensors without axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from costars.types import WeightRule

Tensors = Mapping[str, Tensor]
Changes = tuple[Tensor | None, Tensor | None]  # of W and of b
NORM_EPSILON = torch.finfo(torch.float32).eps  # added to the norms of DoRA by LyCORIS; peft adds none
CONSTRAINT_EPSILON = 1e-8  # added to the norm of OFT's blocks by LyCORIS and sd-scripts


class RuleError(ValueError):
    """What is wrong with the tensors of a rule, or how they do not fit the layer; the caller adds the layer's path."""


def compute_change(rule: WeightRule, weight: Tensor, bias: Tensor | None) -> Changes:
    """The changes of a layer's weight and bias in float32 on its device, at scale 1.

    Raises RuleError if the rule does not fit the layer.
    """
    if weight.ndim == 1 and rule.kind not in NORM_KINDS:
        raise RuleError("changes a norm, which only differences and new values can change")
    device = weight.device
    tensors = {n: t.to(torch.float32) if t.ndim == 0 else t.to(device, torch.float32) for n, t in rule.tensors.items()}
    base = weight.detach().to(torch.float32)
    base_bias = None if bias is None else bias.detach().to(torch.float32)
    try:
        change, bias_change = RULES[rule.kind].formula(tensors, base, base_bias)
        if change is not None and change.shape != base.shape:
            change = _reshape(change, base)
    except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        if isinstance(error, RuleError):
            raise
        raise RuleError(_misfit(rule, weight)) from None
    if bias_change is not None and bias_change.shape != (len(base),):
        raise RuleError(f"has a bias of shape {tuple(bias_change.shape)}, the model's layer has {len(base)} outputs")
    return change, bias_change


def check_rule(rule: WeightRule, weight: Tensor, bias: Tensor | None) -> None:
    """Raise RuleError if the rule does not fit the layer; only shapes are computed."""
    compute_change(rule, weight.to("meta"), None if bias is None else bias.to("meta"))


def input_width(rule: WeightRule) -> int | None:
    """Inputs of the layer that a rule is made for; None if its tensors do not tell."""
    width = RULES[rule.kind].width
    return None if width is None else width(rule.tensors)


def _misfit(rule: WeightRule, weight: Tensor) -> str:
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in rule.tensors.items() if tensor.ndim)
    return f"has tensors {shapes}, which do not fit the model's weight {tuple(weight.shape)}"


def _reshape(change: Tensor, weight: Tensor) -> Tensor:
    """A change whose kernel axes are folded into the inputs, or are 1 x 1 where the weight has none or the reverse."""
    if len(change) != len(weight) or change.ndim == 4 == weight.ndim:
        raise ValueError
    return change.reshape(weight.shape)


def _difference(tensors: Tensors, weight: Tensor, bias: Tensor | None) -> Changes:
    """Full of LyCORIS and ComfyUI's diff and diff_b: the differences themselves, also of norms."""
    return tensors.get("diff"), tensors.get("diff_b")


def _replacement(tensors: Tensors, weight: Tensor, bias: Tensor | None) -> Changes:
    """New values instead of the model's own."""
    return tensors["weight"] - weight, None


def _lora(tensors: Tensors, weight: Tensor, bias: Tensor | None) -> Changes:
    """up @ down (Hu et al. 2021, arXiv 2106.09685, section 4.1)."""
    down = tensors["down"]
    return _decompose((tensors["up"].flatten(1) @ down.flatten(1)).unflatten(1, down.shape[1:]), tensors, weight)


def _loha(tensors: Tensors, weight: Tensor, bias: Tensor | None) -> Changes:
    """(w1_a w1_b) * (w2_a w2_b), with Tucker cores t1, t2 for kernels (Hyeon-Woo et al. 2022, arXiv 2108.06098)."""
    first, second = (_product(tensors, f"w{i}", f"t{i}") for i in (1, 2))
    return _decompose(first * second, tensors, weight)


def _lokr(tensors: Tensors, weight: Tensor, bias: Tensor | None) -> Changes:
    """The Kronecker product of w1 and w2 (Yeh et al. 2023, arXiv 2309.14859, section 3.3)."""
    w1 = tensors["w1"] if "w1" in tensors else tensors["w1_a"] @ tensors["w1_b"]
    w2 = tensors["w2"] if "w2" in tensors else _product(tensors, "w2", "t2")
    if w2.ndim == 2 and weight.ndim == 4 and len(w1) * len(w2) == len(weight):
        w2 = w2.unflatten(1, (weight.shape[1] // w1.shape[1], *weight.shape[2:]))  # inputs and kernel in one axis
    while w1.ndim < w2.ndim:
        w1 = w1.unsqueeze(-1)
    return _decompose(torch.kron(w1, w2.contiguous()), tensors, weight)


def _product(tensors: Tensors, name: str, core: str) -> Tensor:
    """The product of a pair NAME_a (out, r), NAME_b (r, in), or of their transposes on both sides of a Tucker core."""
    a, b = tensors[f"{name}_a"], tensors[f"{name}_b"]
    if core in tensors:
        return torch.einsum("ij...,ip,jq->pq...", tensors[core], a, b)
    return (a @ b.flatten(1)).unflatten(1, b.shape[1:])


def _decompose(change: Tensor, tensors: Tensors, weight: Tensor) -> Changes:
    """A change times its scale, for DoRA with the norms of W + change set to the stored ones, and the bias's change.

    Liu et al. 2024, arXiv 2402.09353, Eq. 5. A magnitude (peft) and a dora_scale (out, 1, ...) are of rows; LyCORIS
    and OneTrainer also write dora_scale (1, in, ...), norms of columns.
    """
    change = change * tensors["scale"]
    magnitude = tensors.get("magnitude", tensors.get("dora_scale"))
    if magnitude is None:
        return change, tensors.get("diff_b")
    merged = weight + (change if change.shape == weight.shape else _reshape(change, weight))
    rows, columns = len(weight), weight.shape[1]
    of_rows = "magnitude" in tensors or magnitude.ndim == 1 or magnitude.shape[0] == rows
    if magnitude.numel() != (rows if of_rows else columns):
        raise RuleError(
            f"has DoRA magnitudes of shape {tuple(magnitude.shape)}, expected {rows} rows or {columns} columns"
        )
    axis = 0 if of_rows else 1
    norms = merged.transpose(0, axis).flatten(1).norm(dim=1) + NORM_EPSILON
    shape = [1] * weight.ndim
    shape[axis] = -1
    return merged * (magnitude.flatten() / norms).view(shape) - weight, tensors.get("diff_b")


def _glora(tensors: Tensors, weight: Tensor, bias: Tensor | None) -> Changes:
    """W a1 a2 + b1 b2 (Chavan et al. 2023, arXiv 2306.07967, without the parts that LyCORIS leaves out)."""
    a1, a2, b1, b2 = (tensors[name].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    if (a1.shape[1], a2.shape[1]) == (len(a1), len(a2)) or a1.shape != a2.T.shape or len(a1) != weight.shape[1]:
        raise RuleError("is a GLoRA of another layout than that of today's LyCORIS; train it again")
    of_weight = torch.einsum("oi...,ij->oj...", weight, a1 @ a2)
    return (of_weight + (b1 @ b2).view(weight.shape)) * tensors["scale"], None


def _ia3(tensors: Tensors, weight: Tensor, bias: Tensor | None) -> Changes:
    """W with its rows (or with on_input its columns) times 1 + factor (Liu et al. 2022, arXiv 2205.05638)."""
    on_input = bool(tensors["on_input"])
    factor, axis = tensors["factor"].flatten(), 1 if on_input else 0
    if len(factor) != weight.shape[axis]:
        raise RuleError(
            f"has {len(factor)} factors, the model's weight {tuple(weight.shape)} needs {weight.shape[axis]}"
        )
    shape = [1] * weight.ndim
    shape[axis] = -1
    with_bias = bias is not None and not on_input and bool(tensors["with_bias"])  # peft's factors are of outputs
    return weight * factor.view(shape), bias * factor if bias is not None and with_bias else None


def _oft(tensors: Tensors, weight: Tensor, bias: Tensor | None) -> Changes:
    """Blocks of rows rotated by Cayley transforms (Qiu et al. 2023, arXiv 2306.07280), as LyCORIS and sd-scripts do."""
    rotations = _rotations(tensors["blocks"], float(tensors["constraint"]) * len(weight))
    count, size, _ = rotations.shape
    rotated = torch.einsum("knm,kn...->km...", rotations, weight.unflatten(0, (count, size))).flatten(0, 1)
    return _rescale(rotated, tensors) - weight, None


def _boft(tensors: Tensors, weight: Tensor, bias: Tensor | None) -> Changes:
    """Butterfly rotations of rows (Liu et al. 2024, arXiv 2311.06243), as LyCORIS does."""
    rotations = _rotations(tensors["blocks"], float(tensors["constraint"]) * len(weight))
    rows, half = weight, rotations.shape[-1] // 2
    for level, blocks in enumerate(rotations):
        stride = 2**level * half
        mixed = rows.unflatten(0, (-1, 2, stride)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, 2 * half))
        mixed = torch.einsum("bij,bj...->bi...", blocks, mixed)
        rows = mixed.flatten(0, 1).unflatten(0, (-1, stride, 2)).transpose(1, 2).flatten(0, 2)
    return _rescale(rows, tensors) - weight, None


def _rotations(blocks: Tensor, constraint: float) -> Tensor:
    """(I + Q) (I - Q)^-1 of the skew-symmetric Q of each block; the norm of all Q is at most the constraint if > 0."""
    skew = blocks - blocks.transpose(-1, -2)
    if constraint > 0:
        skew = skew * (constraint / (skew.norm() + CONSTRAINT_EPSILON)).clamp(max=1.0)
    unit = torch.eye(blocks.shape[-1], device=blocks.device)
    return torch.linalg.solve(unit - skew, unit + skew, left=False)


def _rescale(rows: Tensor, tensors: Tensors) -> Tensor:
    return rows * tensors["rescale"].view(-1, *[1] * (rows.ndim - 1)) if "rescale" in tensors else rows


def _oft_peft(tensors: Tensors, weight: Tensor, bias: Tensor | None) -> Changes:
    """Blocks of columns rotated, as peft does: upper triangles of Q; I - Q over I + Q, or its Neumann series."""
    triangles = tensors["triangles"]
    size = (1 + math.isqrt(1 + 8 * triangles.shape[1])) // 2
    _check_no_kernel(weight)
    skew = triangles.new_zeros(len(triangles), size, size)
    rows, columns = torch.triu_indices(size, size, 1, device=weight.device)
    skew[:, rows, columns] = triangles
    skew = skew - skew.transpose(1, 2)
    terms, unit = int(tensors["neumann_terms"]), torch.eye(size, device=weight.device)
    rotations = _neumann(skew, terms) if terms else torch.linalg.solve(unit + skew, unit - skew, left=False)
    return _rotate_columns(rotations, weight) - weight, None


def _neumann(skew: Tensor, terms: int) -> Tensor:
    """peft's series of so many terms: 1 + 2 Q + 2 Q^2 + ..., the last term once if there are more than two.

    peft computes four terms where three are set.
    """
    total, power = torch.eye(skew.shape[-1], device=skew.device).expand_as(skew), skew
    terms = 4 if terms == 3 else terms
    for exponent in range(1, terms):
        total = total + power * (1.0 if exponent == terms - 1 and terms > 2 else 2.0)
        power = power @ skew
    return total


def _boft_peft(tensors: Tensors, weight: Tensor, bias: Tensor | None) -> Changes:
    """Blocks of columns rotated and rows scaled, as peft does with one butterfly factor."""
    blocks = tensors["blocks"]
    if len(blocks) != 1:
        raise RuleError(f"is a BOFT of {len(blocks)} butterfly factors, expected 1; use another adapter")
    _check_no_kernel(weight)
    skew = 0.5 * (blocks[0] - blocks[0].transpose(1, 2))
    unit = torch.eye(skew.shape[-1], device=weight.device)
    rotations = torch.linalg.solve(unit + skew, unit - skew, left=False)
    rotated = _rotate_columns(rotations, weight)
    return rotated * tensors["rescale"].view(-1, *[1] * (weight.ndim - 1)) - weight, None


def _check_no_kernel(weight: Tensor) -> None:
    if any(side != 1 for side in weight.shape[2:]):
        raise RuleError(
            f"rotates the inputs of a kernel of {weight.shape[2]} x {weight.shape[3]}, which is not supported"
        )


def _rotate_columns(rotations: Tensor, weight: Tensor) -> Tensor:
    """W R^T for blocks (n, size, size) of R; a single block is used for all."""
    columns = weight.flatten(1).unflatten(1, (-1, rotations.shape[-1]))
    rotations = rotations.expand(columns.shape[1], -1, -1)
    return torch.einsum("onc,njc->onj", columns, rotations).reshape(weight.shape)


@dataclass(frozen=True)
class Rule:
    """A formula, the roles that it needs and may have, and how to read the layer's inputs from its tensors."""

    formula: Callable[[Tensors, Tensor, Tensor | None], Changes]
    needed: tuple[frozenset[str], ...]  # one of them
    optional: frozenset[str] = frozenset()
    width: Callable[[Tensors], int | None] | None = None


def _second_axis(name: str) -> Callable[[Tensors], int | None]:
    return lambda tensors: int(tensors[name].shape[1]) if name in tensors and tensors[name].ndim > 1 else None


def _lokr_width(tensors: Tensors) -> int | None:
    widths = [tensors[n].shape[1] for n in ("w1", "w1_b", "w2", "w2_b") if n in tensors and tensors[n].ndim > 1]
    return widths[0] * widths[1] if len(widths) == 2 else None


def _ia3_width(tensors: Tensors) -> int | None:
    return tensors["factor"].numel() if bool(tensors["on_input"]) else None


_W1, _W2 = frozenset({"w1_a", "w1_b"}), frozenset({"w2_a", "w2_b"})
_DECOMPOSED = frozenset({"dora_scale", "magnitude", "diff_b"})
_SCALE = frozenset({"scale"})
RULES: Mapping[str, Rule] = {
    "replacement": Rule(_replacement, (frozenset({"weight"}),), width=_second_axis("weight")),
    "difference": Rule(
        _difference, (frozenset({"diff"}), frozenset({"diff_b"})), frozenset({"diff", "diff_b"}), _second_axis("diff")
    ),
    "lora": Rule(_lora, (frozenset({"down", "up"}) | _SCALE,), _DECOMPOSED, _second_axis("down")),
    "loha": Rule(_loha, (_W1 | _W2 | _SCALE,), _DECOMPOSED | {"t1", "t2"}, _second_axis("w1_b")),
    "lokr": Rule(
        _lokr,
        tuple(first | second | _SCALE for first in (frozenset({"w1"}), _W1) for second in (frozenset({"w2"}), _W2)),
        _DECOMPOSED | {"t2"},
        _lokr_width,
    ),
    "glora": Rule(_glora, (frozenset({"a1", "a2", "b1", "b2"}) | _SCALE,), width=_second_axis("a2")),
    "ia3": Rule(_ia3, (frozenset({"factor", "on_input", "with_bias"}),), width=_ia3_width),
    "oft": Rule(_oft, (frozenset({"blocks", "constraint"}),), frozenset({"rescale"})),
    "boft": Rule(_boft, (frozenset({"blocks", "constraint"}),), frozenset({"rescale"})),
    "oft_peft": Rule(_oft_peft, (frozenset({"triangles", "neumann_terms"}),)),
    "boft_peft": Rule(_boft_peft, (frozenset({"blocks", "rescale"}),)),
}
NORM_KINDS = ("replacement", "difference")  # that can change a norm
