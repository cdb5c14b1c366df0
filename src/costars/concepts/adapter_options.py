"""Reads what a file's options say about its layers: the scale alpha / rank, and settings of OFT and IA3."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

from costars.concepts.dialects import PARTS, PEFT
from costars.concepts.layer_kinds import MAX_RANK, LayerError
from costars.concepts.metadata import parse_json_object, read_json_object
from costars.concepts.peft_options import OPTIONS
from costars.errors import ConceptError

PEFT_OPTIONS = "adapter_config.json"
MAX_ALPHA = 1e6
MAX_BYTES = 10_000_000  # of the options file
# Patterns of peft are regular expressions; only names are read, so that no file can make matching slow.
_NAME_PATTERN = re.compile(r"\^?(?:[\w-]|\\?\.)+\$?")


@dataclass(frozen=True)
class AdapterOptions:
    """The options of a file by part, {"unet.": {"lora_alpha": 8, ...}}; of_peft says that peft's own file was read."""

    by_part: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    of_peft: bool = False
    notes: tuple[str, ...] = ()

    def scale(self, path: str, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732); 1 without an alpha.

        With rank 0 the rank is that of the options.
        """
        options = self._of(path)
        alpha = _match(options.get("alpha_pattern"), path)
        alpha = options.get("lora_alpha", options.get("alpha")) if alpha is None else alpha
        rank = rank or _match(options.get("rank_pattern"), path) or options.get("r", 0)
        if alpha is None or not rank:
            return 1.0
        return float(alpha) / (sqrt(rank) if options.get("use_rslora") else rank)

    def number(self, name: str, path: str) -> float:
        """A number of the options. Raises LayerError if it is missing, because the tensors do not tell it."""
        value = self._of(path).get(name)
        if not self.of_peft or not isinstance(value, int | float):
            raise LayerError(f"needs the option {name}; put its {PEFT_OPTIONS} beside it")
        return float(value)

    def is_input(self, path: str) -> bool:
        """Whether IA3 scales the inputs of a layer. Raises LayerError if the options do not list such layers."""
        names = self._of(path).get("feedforward_modules", None if not self.of_peft else [])
        if not isinstance(names, list):
            raise LayerError(f"needs the list feedforward_modules; put its {PEFT_OPTIONS} beside it")
        return any(path.endswith(str(name)) for name in names)

    def _of(self, path: str) -> Mapping[str, Any]:
        return self.by_part.get(next((part for part in PARTS if path.startswith(part)), ""), {})


def read_options(metadata: Mapping[str, str], keys: Iterable[str], path: Path, source: str) -> AdapterOptions:
    """Read the options of diffusers' metadata, or of the file beside a peft file.

    Raises ConceptError for an option that is not known, or whose value is refused.
    """
    key_list = list(keys)
    if any(PEFT in key for key in key_list):
        return _read_peft(path, key_list, source)
    text = metadata.get("lora_adapter_metadata", "{}")
    options = parse_json_object(text, f"{path.name}: metadata 'lora_adapter_metadata'")
    # UNet2DConditionModel.save_lora_adapter names no part; its options are those of every layer, as in peft's own file.
    unnamed = {k: v for k, v in options.items() if "." not in k}
    _check(unnamed, "LORA", "", source, key_list)
    by_part = {p: unnamed | {k.removeprefix(p): v for k, v in options.items() if k.startswith(p)} for p in PARTS}
    for part, own in by_part.items():
        own_keys = key_list if unnamed else [key for key in key_list if key.startswith(part)]
        _check(own, "LORA", part, source, own_keys)
    return AdapterOptions(by_part)


def _read_peft(path: Path, keys: list[str], source: str) -> AdapterOptions:
    file = path.with_name(PEFT_OPTIONS)
    if not file.is_file():
        note = f"{source!r} is of peft and has no {PEFT_OPTIONS} beside it; its alpha is taken as its rank"
        return AdapterOptions(notes=(note,))
    options = read_json_object(file, MAX_BYTES)
    kind = str(options.get("peft_type") or "LORA")
    if kind not in OPTIONS:
        raise ConceptError(f"{file.name}: peft_type {kind[:20]!r} is not supported; use one of {', '.join(OPTIONS)}")
    _check(options, kind, "", source, keys)
    return AdapterOptions(dict.fromkeys(PARTS, options), of_peft=True)


def _check(options: Mapping[str, Any], kind: str, part: str, source: str, keys: list[str]) -> None:
    """Raise ConceptError for an option of one part that the arithmetic does not follow."""
    for name, value in options.items():
        shown = f"{source}: option {part + str(name)[:60]!r} is {str(value)[:40]!r}"
        treatment = OPTIONS[kind].get(name)
        if treatment is None and value:
            raise ConceptError(f"{shown}, which is not known; save the adapter without it, or update costars")
        if treatment is not None and not treatment.accepts(value):
            raise ConceptError(f"{shown}, which is not supported: it {treatment.why}; use an adapter without it")
        if name in ("lora_alpha", "alpha"):
            _check_number(value, shown, MAX_ALPHA)
        if name == "r":
            _check_number(value, shown, MAX_RANK + 1)
        if name in ("alpha_pattern", "rank_pattern"):
            _check_pattern(value, shown, MAX_ALPHA if name == "alpha_pattern" else MAX_RANK + 1)
    if options.get("use_dora") and not any("lora_magnitude_vector" in key for key in keys):
        raise ConceptError(
            f"{source}: option {part + 'use_dora'!r} is set, but the file has no magnitudes; fetch it again"
        )


def _check_number(value: Any, shown: str, limit: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < limit:
        raise ConceptError(f"{shown}, expected a number below {limit:g}; save the LoRA again")


def _check_pattern(value: Any, shown: str, limit: float) -> None:
    if value and not isinstance(value, dict):
        raise ConceptError(f"{shown}, expected names of layers with numbers; save the LoRA again")
    for pattern, number in (value or {}).items():
        if not _NAME_PATTERN.fullmatch(pattern):
            raise ConceptError(
                f"{shown}: the pattern {pattern[:40]!r} is not a name; save the LoRA with names of layers"
            )
        _check_number(number, shown, limit)


def _match(pattern: Mapping[str, Any] | None, path: str) -> Any:
    """The number of the first pattern that fits the end of a layer's name in its model, as in peft; None if none."""
    name = path.partition(".")[2]
    names = (name, name.removeprefix("text_model."))
    for key, number in (pattern or {}).items():
        if any(re.match(rf"(.*\.)?({key})$", each) for each in names):
            return number
    return None
