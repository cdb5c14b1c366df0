"""Reads the LoRA scale alpha / rank of each part from peft options, for files whose tensors do not store it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from costars.concepts.dialects import PARTS, PEFT
from costars.concepts.metadata import parse_json_object
from costars.errors import ConceptError
from costars.files.regular_file import read_bytes

PEFT_OPTIONS = "adapter_config.json"
MAX_ALPHA = 1e6
# peft options that change what the tensors mean and are not supported.
_UNSUPPORTED_OPTIONS = ("alpha_pattern", "use_rslora", "use_dora")


def read_scales(
    metadata: Mapping[str, str], keys: Iterable[str], path: Path, source: str
) -> dict[str, Callable[[int], float]]:
    """Read {part: rank -> alpha / rank} from diffusers' metadata, or from the options file beside a peft file.

    A part without an alpha is absent; its scale is 1, as in diffusers and peft.
    Raises ConceptError for an unsupported option.
    """
    text = metadata.get("lora_adapter_metadata", "{}")
    options = parse_json_object(text, f"{path.name}: metadata 'lora_adapter_metadata'")
    options_file = path.with_name(PEFT_OPTIONS)
    if any(PEFT in key for key in keys) and options_file.is_file():
        options = _read_peft_options(options_file)
    unsupported = next((k for k, v in options.items() if v and k.rpartition(".")[2] in _UNSUPPORTED_OPTIONS), None)
    if unsupported is not None:
        raise ConceptError(f"{source}: option {unsupported!r} is not supported; save the LoRA without it")
    parts = [part for part in PARTS if f"{part}lora_alpha" in options]
    return {part: partial(_scale, _read_alpha(options, f"{part}lora_alpha", source)) for part in parts}


def _read_peft_options(path: Path) -> dict[str, Any]:
    """peft's own options, repeated for each part."""
    options = parse_json_object(read_bytes(path).decode("utf-8", errors="replace"), path.name)
    kind = str(options.get("peft_type", "LORA"))
    if kind != "LORA":
        raise ConceptError(f"{path.name}: peft_type {kind[:20]!r} is not supported; use LORA")
    return {f"{part}{key}": value for part in PARTS for key, value in options.items()}


def _read_alpha(options: Mapping[str, Any], key: str, source: str) -> float:
    value = options[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_ALPHA:
        raise ConceptError(
            f"{source}: option {key!r} is {str(value)[:40]!r}, expected a number below {MAX_ALPHA:g}; "
            "save the LoRA again"
        )
    return float(value)


def _scale(alpha: float, rank: int) -> float:
    return alpha / rank
