"""Turns the tensors of an adapter file into one change per layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from costars.concepts.dialects import PARTS
from costars.concepts.dtypes import to_float
from costars.concepts.keys import module_path, read_key
from costars.concepts.layer_kinds import LayerError, LayerOptions, build_change
from costars.concepts.layer_paths import weight_axes
from costars.errors import ConceptError
from costars.types import Adapter, Change, LowRank

_NUMBERS = ("alpha", "scalar", "on_input")  # roles that may be integers
_IA3_INPUT, _IA3_FACTOR = ".on_input", ".weight"  # endings of LyCORIS's IA3; .weight alone ends many other keys


def read_adapter(tensors: Mapping[str, Tensor], options: LayerOptions, source: str) -> Adapter:
    """Read the change of every layer: products of low rank in float32, with alpha / rank in up, or whole changes.

    The alpha of a layer takes precedence over the options; without either the scale is 1.
    Raises ConceptError for a tensor that is not understood; none is skipped.
    """
    adapter: dict[str, Change] = {}
    for path, layer in _group_by_layer(tensors, source).items():
        try:
            adapter[path] = build_change(path, layer, options)
        except LayerError as error:
            raise ConceptError(f"{source}: {path!r} {error}; fetch the file again") from None
    return adapter


def normalize_axes(adapter: Adapter, family: str) -> Adapter:
    """Give the factors of linear layers 2 axes and those of convolutions 4, if path and family tell the kind.

    Some files store linear layers as 1 x 1 convolutions, or the reverse.
    """
    return {
        path: _set_axes(entry, weight_axes(path, family)) if isinstance(entry, LowRank) else entry
        for path, entry in adapter.items()
    }


def _group_by_layer(tensors: Mapping[str, Tensor], source: str) -> dict[str, dict[str, Tensor]]:
    """{module path: {role: tensor}}."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        path_and_role = read_key(key) or _read_ia3_factor(key, tensors)
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
        if not tensor.is_floating_point() and role not in _NUMBERS:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ConceptError(
                f"{source}: {key!r} has dtype {dtype}, expected floating point; use a file with floating-point weights"
            )
        layer[role] = to_float(tensor)
    if not layers:
        raise ConceptError(f"{source}: contains no adapter layers; use another file")
    return layers


def _read_ia3_factor(key: str, tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    stem = key.removesuffix(_IA3_FACTOR)
    path = module_path(stem) if key.endswith(_IA3_FACTOR) and stem + _IA3_INPUT in tensors else None
    return None if path is None else (path, "factor")


def _set_axes(entry: LowRank, axes: int | None) -> LowRank:
    if axes == 4 and entry.down.ndim == 2:
        return LowRank(entry.down[:, :, None, None], entry.up[:, :, None, None])
    if axes == 2 and entry.down.ndim == 4 and entry.down.shape[2:] == (1, 1):
        return LowRank(entry.down[:, :, 0, 0], entry.up[:, :, 0, 0])
    return entry
