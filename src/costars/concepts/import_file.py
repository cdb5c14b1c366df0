"""Other people's files into the library: checked whole, then written as ours, or not at all."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costars.concepts.edlora import read_edlora
from costars.concepts.load import concept_of, load_concept, read_card
from costars.concepts.metadata import frequent_tags, read_sidecar, read_words, stated_licence, stated_triggers
from costars.concepts.saving import write_concept
from costars.errors import ConceptError
from costars.files.magic import is_pickle
from costars.files.safetensors_header import read_header, sha256_of
from costars.types import Concept

_NAME = re.compile(r"\w[\w .+,()\[\]-]{0,99}")


@dataclass(frozen=True)
class Naming:
    """What a person says of a concept; None is as the file says."""

    name: str | None = None
    class_name: str | None = None
    trigger: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Imported:
    """A concept as it now is in the library, and what its maker's file lets one guess of its trigger."""

    concept: Concept
    path: Path
    hints: tuple[str, ...]


def import_concept(
    path: Path, library: Path, naming: Naming, replaced: bool = False, words: Path | None = None
) -> Imported:
    """Check a file of any known kind and write it into the library with a card; words are a textual inversion
    that belongs to it, as Custom Diffusion leaves one.

    An ED-LoRA's pickle is opened here and where a file is described, and nowhere else. The trigger, where nobody
    says it, is the only one that the maker gives. Raises ConceptError, and leaves the library as it was, for a
    file that cannot be applied, a name that is no plain name, and one that is there unless it is to be replaced.
    """
    name = _plain(naming.name if naming.name is not None else path.stem)
    target = library / f"{name}.safetensors"
    if target.exists() and not replaced:
        raise ConceptError(f"{name!r} is in your library already; give another --name, or --replace it")
    concept, card, hints = _read(path)
    if words is not None:
        concept = _with_words(concept, load_concept(words, words.stem, words.name))
    said = {"class_name": naming.class_name, "trigger": naming.trigger, "licence": naming.licence}
    card |= {key: value for key, value in said.items() if value is not None}
    concept = _with_trigger(concept, naming.trigger)
    card |= {
        "name": name,
        "class_name": read_words(card, "class_name", path.name),
        "trigger": read_words(card, "trigger", path.name) or concept.trigger,
        "licence": read_words(card, "licence", path.name),
        **({"family": concept.family} if concept.family else {}),
        "per_layer": concept.per_layer,
    }
    if "imported" not in card:  # what a file of ours was made from is kept
        card["imported"] = {"file": path.name, "format": concept.format, "sha256": concept.sha256}
    write_concept(concept, card, target)
    return Imported(load_concept(target, name, name), target, () if card["trigger"] else hints)


def _plain(name: str) -> str:
    if not _NAME.fullmatch(name) or name.endswith(".safetensors"):
        raise ConceptError(
            f"--name {name[:110]!r}: is no plain name; want letters, digits, spaces and .+,()[]-_ , at most 100 of them"
        )
    return name


def read_pickle(path: Path) -> tuple[Concept, dict[str, Any], list[str]]:
    """(concept, card, keys of its tensors) of an ED-LoRA; raises ConceptError for any other pickle."""
    tensors, card = read_edlora(path)
    concept = concept_of(tensors, {"costars": json.dumps(card)}, path, path.stem, path.name, sha256_of(path))
    return replace(concept, format="ED-LoRA"), card, list(tensors)


def _read(path: Path) -> tuple[Concept, dict[str, Any], tuple[str, ...]]:
    """(concept, card, hints at its trigger) of a file."""
    if is_pickle(path):
        concept, card, _ = read_pickle(path)
        return concept, card, ()
    concept, metadata = load_concept(path, path.stem, path.name), read_header(path).metadata
    beside = read_sidecar(path)
    card = {"licence": stated_licence(metadata, beside)} | read_card(path)
    stated = stated_triggers(metadata, beside)
    if len(stated) == 1 and not concept.trigger:
        card["trigger"] = stated[0]
    return concept, card, (*stated, *(tag for tag in frequent_tags(metadata) if tag not in stated))


def _with_words(concept: Concept, inversion: Concept) -> Concept:
    if concept.tokens or not inversion.tokens or inversion.adapter or inversion.weights:
        raise ConceptError(
            f"--words {inversion.source}: want a textual inversion, for a concept that has no words of its own"
        )
    trigger = concept.trigger or inversion.trigger
    return replace(concept, tokens=inversion.tokens, trigger=trigger)


def _with_trigger(concept: Concept, trigger: str | None) -> Concept:
    """With its only word called so, where words were taught: they are what the trigger consists of."""
    if trigger is None or not concept.tokens or all(word in trigger.split() for word in concept.tokens):
        return concept
    if len(concept.tokens) > 1 or len(trigger.split()) != 1:
        words = " ".join(concept.tokens)
        raise ConceptError(f"--trigger {trigger[:60]!r}: want the words that were taught in it, {words!r}")
    return replace(concept, tokens={trigger: next(iter(concept.tokens.values()))})
