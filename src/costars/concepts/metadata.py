"""Reads the texts that describe a concept: its card, metadata of other programs, and files beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costars.errors import ConceptError, ReadError
from costars.files.plain_data import parse_foreign_json
from costars.files.regular_file import read_bytes
from costars.scene.names import find_words_problem

MAX_SIDECAR_BYTES = 10_000_000
MAX_TEXT = 500  # characters of one value
# Ending of a file beside the concept -> {fact: its key in the file}; a.b is key b within a.
SIDECARS: Mapping[str, Mapping[str, str]] = {
    # Civitai Helper
    ".civitai.info": {"triggers": "trainedWords", "base_model": "baseModel", "model": "model.name"},
    # ComfyUI-Lora-Manager
    ".metadata.json": {"triggers": "civitai.trainedWords", "base_model": "base_model", "model": "model_name"},
    # sd-webui
    ".json": {"triggers": "activation text", "base_model": "sd version", "licence": "license", "notes": "notes"},
}


def parse_json_object(text: str, origin: str) -> dict[str, Any]:
    """Parse a JSON object. Raises ConceptError that names its origin if it is anything else."""
    try:
        parsed = parse_foreign_json(text, origin)
    except ReadError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ConceptError(f"{origin} is not a JSON object; fetch the file again")
    return parsed


def read_json_object(path: Path, most: int) -> dict[str, Any]:
    """A JSON object from a file of at most `most` bytes. Raises ConceptError that names the file."""
    try:
        text = read_bytes(path, most).decode("utf-8", errors="replace")
    except ReadError as error:
        raise ConceptError(f"{path.name}: {error.reason}; {error.remedy}") from None
    return parse_json_object(text, path.name)


def read_card_text(card: Mapping[str, Any], key: str, file_name: str) -> str:
    """A text of the card, "" if absent. Raises ConceptError if it cannot be part of a prompt."""
    value = card.get(key, "")
    is_text = isinstance(value, str) and value.isprintable() and len(value) <= MAX_TEXT
    if not is_text or (value and key in ("class_name", "trigger") and find_words_problem(value)):
        raise ConceptError(
            f"{file_name}: invalid {key} {str(value)[:40]!r} in its card, expected one printable line of at most "
            f"{MAX_TEXT} characters without braces; import the file with another"
        )
    return value


def read_frequent_tags(metadata: Mapping[str, str], count: int = 5) -> list[str]:
    """The most frequent tags of the training images (kohya's ss_tag_frequency); they may include the trigger."""
    try:
        folders = parse_foreign_json(metadata.get("ss_tag_frequency", "{}"), "ss_tag_frequency")
    except ReadError:
        return []
    totals: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, times in tags.items() if isinstance(tags, dict) else ():
            totals[tag.strip()] += times if isinstance(times, int) else 0
    return [tag for tag, _ in totals.most_common(count) if tag]


def read_model_spec(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata in the terms of Stability-AI/ModelSpec, without the thumbnail."""
    fields = {k.removeprefix("modelspec."): v for k, v in metadata.items() if k.startswith("modelspec.")}
    return {key: _to_one_line(value) for key, value in fields.items() if key != "thumbnail"}


def read_licence(metadata: Mapping[str, str], sidecar: Mapping[str, Any]) -> str:
    """Licence stated by the author, "" if absent."""
    return read_model_spec(metadata).get("license") or str(sidecar.get("licence", ""))


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read the facts of a file beside the concept: triggers, base_model, licence; {} if there is none.

    SIDECARS lists the known files. Raises ConceptError if the file is damaged.
    """
    for ending, keys in SIDECARS.items():
        sidecar = path.with_name(path.stem + ending)
        if not sidecar.is_file():
            continue
        content = read_json_object(sidecar, MAX_SIDECAR_BYTES)
        facts = {name: value for name, key in keys.items() if (value := _look_up(content, key))}
        return {"file": sidecar.name, **facts}
    return {}


def read_triggers(metadata: Mapping[str, str], sidecar: Mapping[str, Any]) -> list[str]:
    """Trigger words stated by the author, without duplicates."""
    stated = sidecar.get("triggers") or []
    lines = [*(stated if isinstance(stated, list) else [stated]), metadata.get("modelspec.trigger_phrase", "")]
    triggers = [trigger.strip() for line in lines if isinstance(line, str) for trigger in line.split(",")]
    return list(dict.fromkeys(trigger for trigger in triggers if trigger and trigger.isprintable()))


def _look_up(content: Any, key: str) -> Any:
    """The value at a.b.c if it is a text or a list of texts, else None."""
    for name in key.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    if isinstance(content, list):
        return [_to_one_line(text) for text in content if isinstance(text, str)]
    return _to_one_line(content) if isinstance(content, str) else None


def _to_one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text[:MAX_TEXT]).split())
