"""What a concept file says of itself in words: its card, and what others wrote into it and beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from costars.errors import ConceptError

MAX_SIDECAR_BYTES = 10_000_000
MAX_WORDS = 500  # characters of one value that are shown
# Ending of a file beside the concept -> its keys that are read (a.b: b within a).
SIDECARS: Mapping[str, Mapping[str, str]] = {
    ".civitai.info": {"triggers": "trainedWords", "base_model": "baseModel", "model": "model.name"},
    ".metadata.json": {"triggers": "civitai.trainedWords", "base_model": "base_model", "model": "model_name"},
    ".json": {"triggers": "activation text", "base_model": "sd version", "licence": "license", "notes": "notes"},
}


def json_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object; raises ConceptError that names what should have been one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConceptError(f"{what} is not a JSON object; fetch the file again")
    return found


def read_words(card: Mapping[str, Any], key: str, path_name: str) -> str:
    """A line of the card, "" where it has none; raises ConceptError for what cannot stand in a prompt."""
    value = card.get(key, "")
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_WORDS:
        shown = str(value)[:40]
        raise ConceptError(f"{path_name}: its card's {key} {shown!r} is no line of text; import the file with another")
    return value


def frequent_tags(metadata: Mapping[str, str], count: int = 5) -> list[str]:
    """The tags that most training pictures had (kohya's ss_tag_frequency): perhaps the trigger words."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return []
    seen: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, times in tags.items() if isinstance(tags, dict) else ():
            seen[tag.strip()] += times if isinstance(times, int) else 0
    return [tag for tag, _ in seen.most_common(count) if tag]


def model_spec(metadata: Mapping[str, str]) -> dict[str, str]:
    """What the file says in the terms of Stability-AI/ModelSpec, without the thumbnail."""
    found = {k.removeprefix("modelspec."): v for k, v in metadata.items() if k.startswith("modelspec.")}
    return {key: _one_line(value) for key, value in found.items() if key != "thumbnail"}


def stated_licence(metadata: Mapping[str, str], sidecar: Mapping[str, Any]) -> str:
    """The licence that the author gives, "" where there is none."""
    return model_spec(metadata).get("license") or str(sidecar.get("licence", ""))


def read_sidecar(path: Path) -> dict[str, Any]:
    """What a file beside the concept says: triggers, base_model, licence; {} where there is none.

    Those of sd-webui, Civitai Helper and ComfyUI-Lora-Manager are known. Raises ConceptError if it is damaged.
    """
    for ending, keys in SIDECARS.items():
        beside = path.with_name(path.stem + ending)
        if not beside.is_file():
            continue
        if beside.stat().st_size > MAX_SIDECAR_BYTES:
            raise ConceptError(f"{beside.name}: has over {MAX_SIDECAR_BYTES} bytes; move it away")
        said = json_object(beside.read_text(encoding="utf-8", errors="replace"), f"{beside.name}: it")
        facts = {name: value for name, key in keys.items() if (value := _within(said, key))}
        return {"file": beside.name, **facts}
    return {}


def stated_triggers(metadata: Mapping[str, str], sidecar: Mapping[str, Any]) -> list[str]:
    """The trigger words that the author gives, each once."""
    words = sidecar.get("triggers") or []
    given = [*(words if isinstance(words, list) else [words]), metadata.get("modelspec.trigger_phrase", "")]
    single = [word.strip() for line in given if isinstance(line, str) for word in line.split(",")]
    return list(dict.fromkeys(word for word in single if word and word.isprintable()))


def _within(said: Any, key: str) -> Any:
    """The value at a.b.c, if it is text or a list of text."""
    for name in key.split("."):
        said = said.get(name) if isinstance(said, dict) else None
    if isinstance(said, list):
        return [_one_line(word) for word in said if isinstance(word, str)]
    return _one_line(said) if isinstance(said, str) else None


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text[:MAX_WORDS]).split())
