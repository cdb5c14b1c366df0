"""Builds the change of one layer from its tensors by role: a product of low rank, or a rule for the whole weight.

KINDS is the one list of which roles belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from costars.concepts.layer_paths import kernel_size
from costars.types import Change, FullChange, LowRank, WeightRule

MAX_RANK = 4096
MAX_ELEMENTS = 2**28  # of an expanded LoHa layer; the largest layer of SDXL takes 2**24
LayerTensors = Mapping[str, Tensor]  # by role
_EXTRAS = frozenset({"alpha", "scalar", "dora_scale", "magnitude", "diff_b"})  # may be beside those of some kinds
_LOKR = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")


class LayerError(ValueError):
    """What is wrong with the tensors of a layer; the caller adds the layer's path."""


class LayerOptions(Protocol):
    """What a file's options say about its layers."""

    def scale(self, path: str, rank: int) -> float:
        """The factor of a layer's change that its tensors do not store."""
        ...

    def number(self, name: str, path: str) -> float:
        """An option of the whole file that a kind cannot be applied without. Raises LayerError if it is unknown."""
        ...

    def is_input(self, path: str) -> bool:
        """Whether IA3 scales the inputs of a layer."""
        ...

    @property
    def of_peft(self) -> bool:
        """Whether peft's adapter_config.json was read."""
        ...


def build_change(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    """The change of a layer. Raises LayerError if its tensors make no kind of KINDS or do not fit together."""
    core = frozenset(layer) - _EXTRAS
    kind = next((kind for kind in KINDS if core in kind.cores), None)
    extras = frozenset(layer) & _EXTRAS
    if kind is None or not extras <= kind.extras or not (core or "diff_b" in extras):
        found = ", ".join(sorted(layer if core else extras)) or "none"
        raise LayerError(f"has tensors {found}, expected those of one kind: {'; '.join(k.title for k in KINDS)}")
    for role in ("alpha", "scalar"):
        if role in layer and layer[role].numel() != 1:
            raise LayerError(f"has {role} of shape {tuple(layer[role].shape)}, expected one number")
    if "alpha" in layer and kind.alpha_is_scale and float(layer["alpha"]) == 0:
        raise LayerError("has alpha 0, which some programs read as no change and others as the rank; set its alpha")
    change = kind.build(path, layer, options)
    for tensor in _tensors_of(change):
        if not tensor.isfinite().all():
            raise LayerError("has non-finite values, as after a failed training")
    return change


def _tensors_of(change: Change) -> list[Tensor]:
    if isinstance(change, LowRank):
        return [change.down, change.up]
    return [tensor for part, _ in change.parts if isinstance(part, WeightRule) for tensor in part.tensors.values()]


def _rule(kind: str, tensors: LayerTensors) -> FullChange:
    return FullChange(((WeightRule(kind, dict(tensors)), 1.0),))


def _pick(layer: LayerTensors, *roles: str) -> dict[str, Tensor]:
    return {role: layer[role] for role in roles if role in layer}


def _scale(path: str, layer: LayerTensors, rank: int, options: LayerOptions) -> float:
    """alpha / rank, of the layer's own alpha before that of the options, times LyCORIS's scalar."""
    scale = float(layer["alpha"]) / rank if "alpha" in layer else options.scale(path, rank)
    return scale * float(layer.get("scalar", 1.0))


def _shapes(tensors: LayerTensors) -> str:
    return f"has tensors of shapes {', '.join(str(tuple(t.shape)) for t in tensors.values())}"


def _build_lora(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    """LoRA, LoCon or its Tucker form: down (r, in[, kh, kw]), up (out, r[, 1, 1]), mid (r, r, kh, kw)."""
    down, up, mid = layer["down"], layer["up"], layer.get("mid")
    shapes = _shapes(_pick(layer, "down", "up", "mid"))
    axes = {down.ndim, up.ndim} | ({mid.ndim} if mid is not None else set())
    if not axes <= {2, 4} or up.shape[1] != len(down if mid is None else mid):
        raise LayerError(f"{shapes}, which do not fit together")
    if any(n != 1 for n in up.shape[2:]):
        raise LayerError(f"{shapes}, which do not fit together")
    if not 1 <= up.shape[1] <= MAX_RANK:
        raise LayerError(f"{shapes}: rank {up.shape[1]}, expected 1 to {MAX_RANK}")
    scale = _scale(path, layer, len(down), options)
    down, up = down.to(torch.float32), up.to(torch.float32)
    if mid is not None:
        if mid.ndim != 4 or mid.shape[1] != len(down) or any(n != 1 for n in down.shape[2:]):
            raise LayerError(f"{shapes}, which do not fit together")
        down = torch.einsum("mnhw,ni->mihw", mid.to(torch.float32), down.flatten(1))
    flat = up.flatten(1)
    factors = {"down": down, "up": flat if down.ndim == 2 else flat[:, :, None, None]}
    more = _pick(layer, "dora_scale", "magnitude", "diff_b")
    if more:
        return _rule("lora", factors | more | {"scale": torch.tensor(scale)})
    return LowRank(factors["down"], factors["up"] * scale)


def _build_loha(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    """LoHa: (w1_a @ w1_b) * (w2_a @ w2_b) as one product of rank r * r if that is smaller than the weight.

    Its rows are all products of a row of the first with a row of the second (Hyeon-Woo et al. 2022,
    arXiv 2108.06098, proposition 1). With Tucker cores, a and b are (r, out) and (r, in).
    """
    own = _pick(layer, "w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
    a1, b1, a2, b2 = (own[f"w{i}_{side}"] for i in (1, 2) for side in "ab")
    if any(t.ndim != 2 for t in (a1, b1, a2, b2)):
        raise LayerError(f"{_shapes(own)}, which do not fit together")
    ranks = (len(b1), len(b2)) if "t1" in own else (a1.shape[-1], a2.shape[-1])
    fits = ranks == (len(b1), len(b2)) and (a1.shape[1 if "t1" in own else 0], b1.shape[1:]) == (
        a2.shape[1 if "t1" in own else 0],
        b2.shape[1:],
    )
    if not fits or not 1 <= len(b1) <= MAX_RANK:
        raise LayerError(f"{_shapes(own)}, which do not fit together")
    scale = _scale(path, layer, len(b1), options)
    more = _pick(layer, "dora_scale", "diff_b")
    rank, rows, columns, side = len(b1) * len(b2), len(a1), b1.shape[1], kernel_size(path)
    if "t1" not in own and columns % side**2:
        raise LayerError(f"{_shapes(own)}, which do not fit a kernel of {side} x {side}")
    if more or "t1" in own or rank * (rows + columns) >= rows * columns:
        return _rule("loha", own | more | {"scale": torch.tensor(scale)})
    if rank * (rows + columns) > MAX_ELEMENTS:
        raise LayerError(f"{_shapes(own)}, which would expand to over {MAX_ELEMENTS} elements")
    a1, b1, a2, b2 = (t.to(torch.float32) for t in (a1, b1, a2, b2))
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1) * scale
    down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return LowRank(down, up) if side == 1 else LowRank(down.unflatten(1, (-1, side, side)), up[:, :, None, None])


def _build_lokr(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    """LoKr; if both sides are whole, LyCORIS ignores alpha, while peft divides by the rank of its options."""
    own = {name: layer[f"lokr_{name}"] for name in _LOKR if f"lokr_{name}" in layer}
    if any(tensor.ndim not in (2, 4) or 0 in tensor.shape for tensor in own.values()):
        raise LayerError(f"{_shapes(own)}, which do not fit together")
    pair = "w2_b" if "w2_b" in own else "w1_b"
    if pair in own:
        scale = _scale(path, layer, len(own[pair]), options)
    else:
        scale = (options.scale(path, 0) if options.of_peft else 1.0) * float(layer.get("scalar", 1.0))
    return _rule("lokr", own | _pick(layer, "dora_scale", "diff_b") | {"scale": torch.tensor(scale)})


def _build_difference(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    named = {"w_norm": "diff", "b_norm": "diff_b"}
    return _rule("difference", {named.get(role, role): tensor for role, tensor in layer.items()})


def _build_replacement(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    return _rule("replacement", {"weight": layer["set_weight"]})


def _build_glora(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    own = _pick(layer, "a1", "a2", "b1", "b2")
    if any(tensor.ndim not in (2, 4) or 0 in tensor.shape for tensor in own.values()):
        raise LayerError(f"{_shapes(own)}, which do not fit together")
    return _rule("glora", own | {"scale": torch.tensor(_scale(path, layer, len(own["a2"]), options))})


def _build_ia3(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    """IA3 of LyCORIS, which stores factors less 1, and does not change the bias."""
    numbers = {"on_input": torch.tensor(float(layer["on_input"])), "with_bias": torch.tensor(0.0)}
    return _rule("ia3", {"factor": layer["factor"]} | numbers)


def _build_ia3_peft(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    """IA3 of peft: factors of outputs (n, 1), with the bias, or of inputs (1, n); for kernels the options tell."""
    factor = layer["ia3_l"]
    on_input = options.is_input(path) if factor.ndim != 2 else len(factor) == 1
    numbers = {"on_input": torch.tensor(float(on_input)), "with_bias": torch.tensor(1.0)}
    return _rule("ia3", {"factor": factor.to(torch.float32) - 1} | numbers)


def _build_oft(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    """OFT (3 axes) and BOFT (4 axes) of LyCORIS and sd-scripts, whose alpha is a constraint."""
    blocks = layer["oft_blocks"]
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise LayerError(f"{_shapes({'oft_blocks': blocks})}, expected square blocks")
    constraint = torch.tensor(float(layer.get("alpha", 0.0)))
    own = {"blocks": blocks, "constraint": constraint} | _pick(layer, "rescale")
    return _rule("oft" if blocks.ndim == 3 else "boft", own)


def _build_oft_peft(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    terms = options.number("num_cayley_neumann_terms", path) if options.number("use_cayley_neumann", path) else 0
    return _rule("oft_peft", {"triangles": layer["oft_R"], "neumann_terms": torch.tensor(float(terms))})


def _build_boft_peft(path: str, layer: LayerTensors, options: LayerOptions) -> Change:
    return _rule("boft_peft", {"blocks": layer["boft_R"], "rescale": layer["boft_s"]})


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of layer: the roles that it is made of, those that may be beside them, and how to build its change."""

    title: str
    build: Callable[[str, LayerTensors, LayerOptions], Change]
    cores: frozenset[frozenset[str]]
    extras: frozenset[str] = frozenset()
    alpha_is_scale: bool = True


def _sets(*cores: str) -> frozenset[frozenset[str]]:
    return frozenset(frozenset(core.split()) for core in cores)


_SCALED = frozenset({"alpha", "scalar"})
_W1, _W2 = ("lokr_w1", "lokr_w1_a lokr_w1_b"), ("lokr_w2", "lokr_w2_a lokr_w2_b", "lokr_w2_a lokr_w2_b lokr_t2")
KINDS: tuple[Kind, ...] = (
    Kind(title="down, up (LoRA)", build=_build_lora, cores=_sets("down up", "down mid up"), extras=_EXTRAS),
    Kind(
        title="w1_a, w1_b, w2_a, w2_b (LoHa)",
        build=_build_loha,
        cores=_sets("w1_a w1_b w2_a w2_b", "w1_a w1_b w2_a w2_b t1 t2"),
        extras=_EXTRAS - {"magnitude"},
    ),
    Kind(
        title="lokr_w1, lokr_w2 (LoKr)",
        build=_build_lokr,
        cores=_sets(*(f"{first} {second}" for first in _W1 for second in _W2)),
        extras=_EXTRAS - {"magnitude"},
    ),
    Kind(
        title="diff or w_norm (differences)",
        build=_build_difference,
        cores=_sets("", "diff", "w_norm", "b_norm", "w_norm b_norm"),
        extras=frozenset({"diff_b"}),
    ),
    Kind(title="set_weight", build=_build_replacement, cores=_sets("set_weight")),
    Kind(title="a1, a2, b1, b2 (GLoRA)", build=_build_glora, cores=_sets("a1 a2 b1 b2"), extras=_SCALED),
    Kind(title="on_input, weight (IA3)", build=_build_ia3, cores=_sets("on_input factor")),
    Kind(title="ia3_l (IA3)", build=_build_ia3_peft, cores=_sets("ia3_l")),
    Kind(
        title="oft_blocks (OFT)",
        build=_build_oft,
        cores=_sets("oft_blocks", "oft_blocks rescale"),
        extras=frozenset({"alpha"}),
        alpha_is_scale=False,
    ),
    Kind(title="oft_R (OFT)", build=_build_oft_peft, cores=_sets("oft_R")),
    Kind(title="boft_R, boft_s (BOFT)", build=_build_boft_peft, cores=_sets("boft_R boft_s")),
)
