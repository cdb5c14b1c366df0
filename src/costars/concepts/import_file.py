"""Imports concept files of any known program into the library: checked completely, then written as costars' own."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from costars.concepts.edlora import read_edlora
from costars.concepts.load import load_concept, read_card, to_concept
from costars.concepts.metadata import read_card_text, read_frequent_tags, read_licence, read_sidecar, read_triggers
from costars.concepts.saving import save_concept
from costars.errors import ConceptError
from costars.files.atomic import atomic_file
from costars.files.magic import is_pickle
from costars.files.safetensors_header import compute_sha256, read_header
from costars.scene.names import NAME_RULE, find_words_problem, is_name, normalize_name, suggest_name
from costars.scene.prompt_syntax import find_foreign_syntax, to_plain_text
from costars.types import Concept


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the user sets on import; None takes the value from the file.

    `embedding` is the textual inversion that belongs to the file, as for Custom Diffusion. `overwrite` replaces a
    concept of the same name.
    """

    name: str | None = None
    class_name: str | None = None
    trigger: str | None = None
    licence: str | None = None
    embedding: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class ImportResult:
    """The concept in the library, and words of its file that may be the trigger if it has none."""

    concept: Concept
    path: Path
    hints: tuple[str, ...]


def import_concept(path: Path, library: Path, options: ImportOptions) -> ImportResult:
    """Check a file of any known kind and write it with a card into the folder `library`.

    The trigger is that of the options, else of the file's card, else the only one its author states. Pickles of
    ED-LoRAs are opened only here and in `inspect.describe`.
    Raises ConceptError, and leaves the library unchanged, if the file is not supported, the name is invalid, or the
    name exists and `overwrite` is false.
    """
    name = _check_name(options.name if options.name is not None else path.stem)
    _check_words(options)
    target = library / f"{name}.safetensors"
    if target.exists() and not options.overwrite:
        raise _taken(name)
    concept, card, hints = _read_file(path)
    if options.embedding is not None:
        embedding = options.embedding
        concept = _add_embedding(concept, load_concept(embedding, embedding.stem, embedding.name))
    given = {"class_name": options.class_name, "trigger": options.trigger, "licence": options.licence}
    card |= {key: value for key, value in given.items() if value is not None}
    concept = _rename_token(concept, options.trigger)
    card = _complete_card(card, concept, name, path)
    try:
        with atomic_file(target, replace=options.overwrite) as partial:
            save_concept(concept, card, partial)
            loaded = load_concept(partial, name, name)  # what is written is what is read, also beside other imports
    except FileExistsError:
        raise _taken(name) from None
    return ImportResult(loaded, target, () if loaded.trigger else hints)


def _taken(name: str) -> ConceptError:
    return ConceptError(f"{name!r} is already in your library; choose another --name, or use --replace")


def read_pickle(path: Path) -> tuple[Concept, dict[str, Any], list[str]]:
    """Read an ED-LoRA as (concept, card, keys of its tensors). Raises ConceptError for any other pickle."""
    tensors, card = read_edlora(path)
    concept = to_concept(tensors, {"costars": json.dumps(card)}, path, path.stem, path.name, compute_sha256(path))
    return replace(concept, format="ED-LoRA"), card, list(tensors)


def _check_name(name: str) -> str:
    name = normalize_name(name)
    if not is_name(name):
        raise ConceptError(f"--name {name[:110]!r}: {NAME_RULE}; use --name {suggest_name(name)}")
    return name


def _check_words(options: ImportOptions) -> None:
    """Raises ConceptError for a class or trigger that a scene would refuse."""
    for option, words in (("--class", options.class_name), ("--trigger", options.trigger)):
        if words and (problem := find_words_problem(words)):
            raise ConceptError(f"{option} {words[:60]!r} {problem}")
    if options.trigger and (problem := find_foreign_syntax(options.trigger)):
        raise ConceptError(f"--trigger {options.trigger[:60]!r}: {problem}")


def _complete_card(card: dict[str, Any], concept: Concept, name: str, path: Path) -> dict[str, Any]:
    """The card with every field that costars reads, and the origin of a file that another program wrote."""
    card = card | {
        "name": name,
        "class_name": read_card_text(card, "class_name", path.name),
        "trigger": read_card_text(card, "trigger", path.name) or concept.trigger,
        "licence": read_card_text(card, "licence", path.name),
        **({"family": concept.family} if concept.family else {}),
        "per_layer": concept.per_layer,
    }
    origin = {"file": path.name, "format": concept.format, "sha256": concept.sha256}
    return card if "imported" in card else card | {"imported": origin}


def _read_file(path: Path) -> tuple[Concept, dict[str, Any], tuple[str, ...]]:
    """(concept, card, possible triggers)."""
    if is_pickle(path):
        concept, card, _ = read_pickle(path)
        return concept, card, ()
    concept, metadata = load_concept(path, path.stem, path.name), read_header(path).metadata
    sidecar = read_sidecar(path)
    card = {"licence": read_licence(metadata, sidecar)} | read_card(path)
    triggers = read_triggers(metadata, sidecar)
    if len(triggers) == 1 and not concept.trigger and not find_foreign_syntax(triggers[0]):
        card["trigger"] = triggers[0]
    return concept, card, (*triggers, *(tag for tag in read_frequent_tags(metadata) if tag not in triggers))


def _add_embedding(concept: Concept, inversion: Concept) -> Concept:
    """The concept with the embeddings of a textual inversion."""
    if concept.tokens or not inversion.tokens or inversion.adapter or inversion.weights:
        raise ConceptError(
            f"--words {inversion.source}: expected a textual inversion, for a concept without learned words of its "
            "own; give another file, or leave --words out"
        )
    return replace(concept, tokens=inversion.tokens, trigger=concept.trigger or inversion.trigger)


def _rename_token(concept: Concept, trigger: str | None) -> Concept:
    """The concept with its only token renamed to the trigger's words, because prompts contain the trigger."""
    words = "" if trigger is None else to_plain_text(trigger)
    if trigger is None or not concept.tokens or all(token in words.split() for token in concept.tokens):
        return concept
    if len(concept.tokens) > 1 or len(words.split()) != 1:
        tokens = " ".join(concept.tokens)
        raise ConceptError(f"--trigger {trigger[:60]!r}: must contain the learned tokens {tokens!r}")
    return replace(concept, tokens={words: next(iter(concept.tokens.values()))})
