"""Weights in 8-bit floating point: which scale belongs to which weight, and what is not readable at all.

A scaled weight is the product of a float8 tensor and a float32 scale. ComfyUI writes the scale of NAME.weight as
NAME.scale_weight (with a marker scaled_fp8), or as NAME.weight_scale (with NAME.comfy_quant, which names the format).
https://github.com/comfyanonymous/ComfyUI/blob/master/QUANTIZATION.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from costars.errors import ModelError, ReadError
from costars.files.plain_data import parse_foreign_json
from costars.files.safetensors_header import Entry

_SCALES = (".scale_weight", ".weight_scale")
_MARKER = ".comfy_quant"
_FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_FORMATS = ("float8_e4m3fn", "float8_e5m2")  # of a marker
_SCALE_TYPES = ("F32", "F16", "BF16")
_WEIGHTS = ("F64", "F32", "F16", "BF16", *_FLOAT8)
_REMEDY = "use a release in float16, bfloat16 or float32"


def find_scales(entries: Mapping[str, Entry], what: str) -> dict[str, str]:
    """{key of a float8 weight: key of its scale}.

    entries are the tensors of a file. Raises ModelError for a scale without a float8 weight, and for a scale of a block
    of the weight.
    """
    scales: dict[str, str] = {}
    for key, entry in entries.items():
        layer = next((key.removesuffix(end) for end in _SCALES if key.endswith(end)), None)
        if layer is None:
            continue
        weight = f"{layer}.weight"
        if weight not in entries or entries[weight].dtype not in _FLOAT8 or weight in scales:
            raise ModelError(f"{what}: {key!r} is a scale without a float8 weight {weight!r}; {_REMEDY}")
        rows = entries[weight].shape[:1]
        if entry.dtype not in _SCALE_TYPES or entry.shape not in ((), (1,), rows, (*rows, 1)):
            raise ModelError(
                f"{what}: {key!r} ({entry.dtype} of shape {entry.shape}) does not scale a weight of shape "
                f"{entries[weight].shape} as a whole or by rows, which is not supported; {_REMEDY}"
            )
        scales[weight] = key
    return scales


def check_weight_types(entries: Mapping[str, Entry], keys: Iterable[str], what: str) -> None:
    """Raises ModelError for weights that are quantized to integers; keys are those of weights."""
    for key in keys:
        if entries[key].dtype not in _WEIGHTS:
            raise ModelError(
                f"{what}: {key!r} has the type {entries[key].dtype}; quantized checkpoints (int8, nf4, nvfp4, "
                f"GGUF) are not supported; {_REMEDY}"
            )


def check_marker(key: str, marker: Tensor, what: str) -> None:
    """Raises ModelError for a marker of a format that is not a scaled float8."""
    if not key.endswith(_MARKER):
        return
    try:
        found = parse_foreign_json(bytes(marker.tolist()), key)["format"]
    except (ReadError, ValueError, KeyError, TypeError):
        found = "unreadable"
    if found not in _FORMATS:
        raise ModelError(
            f"{what}: {key!r} states the format {str(found)[:40]!r}, supported are {', '.join(_FORMATS)}; {_REMEDY}"
        )


def apply_scale(weight: Tensor, scale: Tensor) -> Tensor:
    """The float32 weight of a float8 tensor and its scale: one value, or one for each row (output channel)."""
    scale = scale.float()
    return weight.float() * (scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, *[1] * (weight.ndim - 1)))


def is_marker(key: str) -> bool:
    """Whether a tensor states how a layer is quantized."""
    return key.endswith(_MARKER)
