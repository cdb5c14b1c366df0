"""Turns the tensors of an adapter file into one low-rank weight change per layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from costars.concepts.dialects import PARTS
from costars.concepts.keys import read_key
from costars.concepts.layer_paths import kernel_size, weight_axes
from costars.errors import ConceptError
from costars.types import Adapter, LowRank

MAX_RANK = 4096
MAX_ELEMENTS = 2**28  # of an expanded LoHa layer; the largest layer of SDXL takes 2**24
LayerTensors = Mapping[str, Tensor]  # by role


class _LayerError(ValueError):
    """What is wrong with the tensors of a layer; the caller adds the layer's path."""


def read_adapter(tensors: Mapping[str, Tensor], scales: Mapping[str, Callable[[int], float]], source: str) -> Adapter:
    """Read the weight change of every layer as up @ down in float32, with the scale alpha / rank folded into up.

    The alpha of a layer takes precedence over `scales` {part: rank -> scale}; without either the scale is 1.
    Raises ConceptError for a tensor that is not understood; none is skipped.
    """
    adapter: dict[str, LowRank] = {}
    for path, layer in _group_by_layer(tensors, source).items():
        try:
            adapter[path] = _build_change(path, layer, scales)
        except _LayerError as error:
            raise ConceptError(f"{source}: {path!r} {error}; fetch the file again") from None
    return adapter


def normalize_axes(adapter: Adapter, family: str) -> Adapter:
    """Give the factors of linear layers 2 axes and those of convolutions 4, if path and family tell the kind.

    Some files store linear layers as 1 x 1 convolutions, or the reverse.
    """
    return {path: _set_axes(entry, weight_axes(path, family)) for path, entry in adapter.items()}


def _group_by_layer(tensors: Mapping[str, Tensor], source: str) -> dict[str, dict[str, Tensor]]:
    """{module path: {role: tensor in float32}}."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        path_and_role = read_key(key)
        if path_and_role is None:
            raise ConceptError(
                f"{source}: contains {key!r}, which is not an adapter layer of SD 1.5, SD 2 or SDXL in the formats of "
                f"kohya, diffusers ({', '.join(PARTS)}) or peft; convert it, or use another file"
            )
        path, role = path_and_role
        layer = layers.setdefault(path, {})
        if role in layer:
            raise ConceptError(
                f"{source}: layer {path!r} appears twice, once as {key!r}; use a file written by one program"
            )
        if not tensor.is_floating_point() and role != "alpha":
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ConceptError(
                f"{source}: {key!r} has dtype {dtype}, expected floating point; use a file with floating-point weights"
            )
        layer[role] = tensor.to(torch.float32)
    if not layers:
        raise ConceptError(f"{source}: contains no adapter layers; use another file")
    return layers


def _build_change(path: str, layer: LayerTensors, scales: Mapping[str, Callable[[int], float]]) -> LowRank:
    alpha = layer.get("alpha")
    roles = frozenset(layer) - {"alpha"}
    if roles not in BUILDERS:
        found = ", ".join(sorted(roles)) or "none"
        raise _LayerError(f"has tensors {found}, expected down, up (LoRA) or w1_a, w1_b, w2_a, w2_b (LoHa)")
    if alpha is not None and alpha.numel() != 1:
        raise _LayerError(f"has an alpha of shape {tuple(alpha.shape)}, expected one number")
    rank, entry = BUILDERS[roles](path, layer)
    part = next(p for p in PARTS if path.startswith(p))
    part_scale = scales[part](rank) if part in scales else 1.0
    scale = part_scale if alpha is None else float(alpha) / rank
    entry = LowRank(entry.down, entry.up * scale)
    if not (entry.down.isfinite().all() and entry.up.isfinite().all()):
        raise _LayerError("has non-finite values, as after a failed training")
    return entry


def _build_lora(_: str, layer: LayerTensors) -> tuple[int, LowRank]:
    """LoRA, or LoCon for convolutions: down (r, in) or (r, in, kh, kw), up (out, r) or (out, r, 1, 1)."""
    down, up = layer["down"], layer["up"]
    shapes = f"has tensors of shapes {tuple(down.shape)} and {tuple(up.shape)}"
    if not {down.ndim, up.ndim} <= {2, 4} or up.shape[1] != len(down) or any(n != 1 for n in up.shape[2:]):
        raise _LayerError(f"{shapes}, which do not fit together")
    if not 1 <= len(down) <= MAX_RANK:
        raise _LayerError(f"{shapes}: rank {len(down)}, expected 1 to {MAX_RANK}")
    flat = up.reshape(up.shape[:2])
    return len(down), LowRank(down, flat if down.ndim == 2 else flat[:, :, None, None])


def _build_loha(path: str, layer: LayerTensors) -> tuple[int, LowRank]:
    """LoHa: (w1_a @ w1_b) * (w2_a @ w2_b) as one product of rank r * r, or of full rank if that is smaller.

    Its rows are all products of a row of the first with a row of the second (Hyeon-Woo et al. 2022,
    arXiv 2108.06098, proposition 1).
    """
    a1, b1, a2, b2 = (layer[f"w{i}_{side}"] for i in (1, 2) for side in "ab")
    shapes = f"has tensors of shapes {[tuple(t.shape) for t in (a1, b1, a2, b2)]}"
    if any(t.ndim != 2 for t in (a1, b1, a2, b2)) or a1.shape[1] != len(b1) or a2.shape[1] != len(b2):
        raise _LayerError(f"{shapes}, which do not fit together")
    if len(a1) != len(a2) or b1.shape[1] != b2.shape[1] or not 1 <= len(b1) <= MAX_RANK:
        raise _LayerError(f"{shapes}, which do not fit together")
    rank = min(len(b1) * len(b2), len(a1), b1.shape[1])
    if rank * (len(a1) + b1.shape[1]) > MAX_ELEMENTS:
        raise _LayerError(f"{shapes}, which would expand to over {MAX_ELEMENTS} elements")
    if len(b1) * len(b2) == rank:
        up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
        down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    else:
        dense = (a1 @ b1) * (a2 @ b2)
        is_wide = dense.shape[1] > dense.shape[0]
        up, down = (torch.eye(len(dense)), dense) if is_wide else (dense, torch.eye(dense.shape[1]))
    side = kernel_size(path)
    if side == 1:
        return len(b1), LowRank(down, up)
    if down.shape[1] % side**2:
        raise _LayerError(f"{shapes}, which do not fit a kernel of {side} x {side}")
    return len(b1), LowRank(down.unflatten(1, (-1, side, side)), up[:, :, None, None])


# Roles of the tensors in a layer -> function that builds (rank that alpha is divided by, weight change).
BUILDERS: Mapping[frozenset[str], Callable[[str, LayerTensors], tuple[int, LowRank]]] = {
    frozenset({"down", "up"}): _build_lora,
    frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}): _build_loha,
}


def _set_axes(entry: LowRank, axes: int | None) -> LowRank:
    if axes == 4 and entry.down.ndim == 2:
        return LowRank(entry.down[:, :, None, None], entry.up[:, :, None, None])
    if axes == 2 and entry.down.ndim == 4 and entry.down.shape[2:] == (1, 1):
        return LowRank(entry.down[:, :, 0, 0], entry.up[:, :, 0, 0])
    return entry
