"""From the tensors of an adapter file to low rank changes, one for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from costars.concepts.keys import PARTS, read_key
from costars.concepts.layer_paths import kernel_size, weight_axes
from costars.errors import ConceptError
from costars.types import Adapter, LowRank

MAX_RANK = 4096
MAX_NUMBERS = 2**28  # of a layer that is written out; the largest of SDXL takes 2**24
Factors = Mapping[str, Tensor]


class _UnfitError(ValueError):
    """What is wrong with a layer's factors, without the layer's name."""


def read_adapter(tensors: Mapping[str, Tensor], scales: Mapping[str, Callable[[int], float]], source: str) -> Adapter:
    """Every layer's change of weight as up @ down in float32, the scale alpha / rank folded into up.

    A layer's own alpha goes first, then its part's of scales {part: rank -> scale}, then 1.
    Raises ConceptError for a tensor that is not understood: none is skipped.
    """
    adapter: dict[str, LowRank] = {}
    for path, factors in _layers(tensors, source).items():
        try:
            adapter[path] = _change(path, factors, scales)
        except _UnfitError as error:
            raise ConceptError(f"{source}: {path!r} {error}; fetch the file again") from None
    return adapter


def with_axes(adapter: Adapter, family: str) -> Adapter:
    """Factors of linear layers with 2 axes and of convolutions with 4, where the path and the family tell which.

    Some files hold linear layers as convolutions of one pixel, and the reverse.
    """
    return {path: _with_axes(entry, weight_axes(path, family)) for path, entry in adapter.items()}


def _layers(tensors: Mapping[str, Tensor], source: str) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        read = read_key(key)
        if read is None:
            raise _not_understood(key, source)
        path, role = read
        factors = layers.setdefault(path, {})
        if role in factors:
            raise ConceptError(f"{source}: holds {path!r} twice, once as {key!r}; use a file that one program wrote")
        if not tensor.is_floating_point() and role != "alpha":
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ConceptError(f"{source}: {key!r} is of {kind}, want floating point numbers; use a file that has them")
        factors[role] = tensor.to(torch.float32)
    if not layers:
        raise _not_understood("nothing at all", source)
    return layers


def _not_understood(what: str, source: str) -> ConceptError:
    return ConceptError(
        f"{source}: holds {what!r}, which is no layer of an adapter for SD 1.5, 2 or SDXL in the formats of kohya, "
        f"diffusers ({', '.join(PARTS)}) or peft; convert it, or use another file"
    )


def _change(path: str, factors: Factors, scales: Mapping[str, Callable[[int], float]]) -> LowRank:
    alpha = factors.get("alpha")
    roles = frozenset(factors) - {"alpha"}
    if roles not in KINDS:
        raise _UnfitError(f"has the factors {', '.join(sorted(roles)) or 'none'}, want both of a LoRA or all of a LoHa")
    if alpha is not None and alpha.numel() != 1:
        raise _UnfitError(f"has an alpha of shape {tuple(alpha.shape)}, want one number")
    rank, entry = KINDS[roles](path, factors)
    part = next(p for p in PARTS if path.startswith(p))
    scale = scales[part](rank) if alpha is None and part in scales else 1.0 if alpha is None else float(alpha) / rank
    entry = LowRank(entry.down, entry.up * scale)
    if not (entry.down.isfinite().all() and entry.up.isfinite().all()):
        raise _UnfitError("holds numbers that are not finite, as from a training that failed")
    return entry


def _low_rank(_: str, factors: Factors) -> tuple[int, LowRank]:
    """LoRA, and LoCon for convolutions: down (r, in) or (r, in, kh, kw), up (out, r) or (out, r, 1, 1)."""
    down, up = factors["down"], factors["up"]
    shapes = f"has factors of shapes {tuple(down.shape)} and {tuple(up.shape)}"
    if not {down.ndim, up.ndim} <= {2, 4} or up.shape[1] != len(down) or any(n != 1 for n in up.shape[2:]):
        raise _UnfitError(shapes)
    if not 1 <= len(down) <= MAX_RANK:
        raise _UnfitError(f"{shapes}: a rank of {len(down)}, want 1 to {MAX_RANK}")
    flat = up.reshape(up.shape[:2])
    return len(down), LowRank(down, flat if down.ndim == 2 else flat[:, :, None, None])


def _hadamard(path: str, factors: Factors) -> tuple[int, LowRank]:
    """LoHa: (w1_a @ w1_b) * (w2_a @ w2_b) as one product of rank r * r, or of full rank where that is less.

    Row by row, every product of a number of the first with one of the second (Hyeon-Woo et al. 2022,
    arXiv 2108.06098, proposition 1).
    """
    a1, b1, a2, b2 = (factors[f"w{i}_{side}"] for i in (1, 2) for side in "ab")
    shapes = [tuple(t.shape) for t in (a1, b1, a2, b2)]
    if any(len(s) != 2 for s in shapes) or a1.shape[1] != len(b1) or a2.shape[1] != len(b2):
        raise _UnfitError(f"has factors of shapes {shapes}")
    if len(a1) != len(a2) or b1.shape[1] != b2.shape[1] or not 1 <= len(b1) <= MAX_RANK:
        raise _UnfitError(f"has factors of shapes {shapes}")
    rank = min(len(b1) * len(b2), len(a1), b1.shape[1])
    if rank * (len(a1) + b1.shape[1]) > MAX_NUMBERS:
        raise _UnfitError(f"has factors of shapes {shapes}, which would become over {MAX_NUMBERS} numbers")
    if len(b1) * len(b2) == rank:
        up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
        down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    else:
        dense = (a1 @ b1) * (a2 @ b2)
        wide = dense.shape[1] > dense.shape[0]
        up, down = (torch.eye(len(dense)), dense) if wide else (dense, torch.eye(dense.shape[1]))
    side = kernel_size(path)
    if side == 1:
        return len(b1), LowRank(down, up)
    if down.shape[1] % side**2:
        raise _UnfitError(f"has factors of shapes {shapes} for a kernel of {side} x {side}")
    return len(b1), LowRank(down.unflatten(1, (-1, side, side)), up[:, :, None, None])


# The factors that a layer has -> what they make: (rank that alpha is divided by, the change).
KINDS: Mapping[frozenset[str], Callable[[str, Factors], tuple[int, LowRank]]] = {
    frozenset({"down", "up"}): _low_rank,
    frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}): _hadamard,
}


def _with_axes(entry: LowRank, axes: int | None) -> LowRank:
    if axes == 4 and entry.down.ndim == 2:
        return LowRank(entry.down[:, :, None, None], entry.up[:, :, None, None])
    if axes == 2 and entry.down.ndim == 4 and entry.down.shape[2:] == (1, 1):
        return LowRank(entry.down[:, :, 0, 0], entry.up[:, :, 0, 0])
    return entry
