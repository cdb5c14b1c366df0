"""The scale of each part of an adapter, where peft's options say it and not the tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from costars.concepts.keys import PARTS, PEFT_PREFIX
from costars.concepts.metadata import json_object
from costars.errors import ConceptError

PEFT_OPTIONS = "adapter_config.json"
MAX_ALPHA = 1e6
# Options of peft that change what the factors mean; none is applied here, so none is passed over.
_UNKNOWN = ("alpha_pattern", "use_rslora", "use_dora")


def part_scales(
    metadata: Mapping[str, str], keys: Iterable[str], path: Path, source: str
) -> dict[str, Callable[[int], float]]:
    """{part: rank -> alpha / rank} of the options in diffusers' metadata, or beside peft's own file.

    A part that neither speaks of has the scale 1, as diffusers and peft take it.
    Raises ConceptError for an option that is not applied here.
    """
    written = metadata.get("lora_adapter_metadata", "{}")
    options = json_object(written, f"{path.name}: its metadata 'lora_adapter_metadata'")
    beside = path.with_name(PEFT_OPTIONS)
    if any(PEFT_PREFIX in key for key in keys) and beside.is_file():
        options = _of_peft(beside)
    odd = next((k for k, v in options.items() if v and k.rpartition(".")[2] in _UNKNOWN), None)
    if odd is not None:
        raise ConceptError(f"{source}: its option {odd!r} is set, which costars cannot apply; save the LoRA without it")
    said = [part for part in PARTS if f"{part}lora_alpha" in options]
    return {part: partial(_scale, _number(options, f"{part}lora_alpha", source)) for part in said}


def _of_peft(beside: Path) -> dict[str, Any]:
    """peft's own options, said of every part."""
    text = beside.read_text(encoding="utf-8", errors="replace")
    options = json_object(text, f"{beside.name}: it")
    kind = str(options.get("peft_type", "LORA"))
    if kind != "LORA":
        raise ConceptError(
            f"{beside.name}: peft_type {kind[:20]!r}: of peft's kinds costars applies LORA alone; use one"
        )
    return {f"{part}{key}": value for part in PARTS for key, value in options.items()}


def _number(options: Mapping[str, Any], key: str, source: str) -> float:
    value = options[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_ALPHA:
        raise ConceptError(
            f"{source}: its option {key!r} is {str(value)[:40]!r}, want a number below {MAX_ALPHA:g}; "
            "save the LoRA again"
        )
    return float(value)


def _scale(alpha: float, rank: int) -> float:
    return alpha / rank
