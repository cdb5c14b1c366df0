"""A scene's concepts held against its model: what fits, what does not, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from costars.errors import ConceptError, SceneError
from costars.methods.prompts import class_names, global_prompt, member_prompt
from costars.model.lora import changes, fit, matched
from costars.model.model import Model
from costars.model.prompt_weighting import read
from costars.model.text_encoder import vector_counts
from costars.sample.attention_processor import attention_layers, cross_numbers
from costars.scene.scene import Scene
from costars.types import Concept

SHOWN = 3  # names of layers in a note


class Fitted(NamedTuple):
    """Concepts with the layers that the model has, a line for each that has others too, and how many layers fit."""

    concepts: dict[str, Concept]
    notes: tuple[str, ...]
    fits: dict[str, str]


def fitted(concepts: Mapping[str, Concept], model: Model) -> Fitted:
    """The concepts as this model can use them.

    Raises ConceptError for one of another family, of other sizes, or of which no layer is in the model.
    """
    modules = {"unet": model.unet, **{e.name: e.module for e in model.encoders}}
    taken, notes, fits = {}, [], {}
    for name, concept in concepts.items():
        if concept.family not in ("", model.facts.family):
            raise ConceptError(
                f"concept {concept.source!r} is for {concept.family}, the model {model.facts.name!r} is "
                f"{model.facts.family}; use a concept or a model of the other's family"
            )
        if not concept.family:
            notes.append(
                f"{name}: {concept.source!r} does not say which base model it is for; its layers are in this one"
            )
        whole = {**concept.adapter, **changes(concept.weights, modules, concept.source)}
        adapter, left = matched(whole, modules)
        if left and not adapter:
            raise ConceptError(
                f"concept {concept.source!r}: none of its {len(left)} layers is in the model {model.facts.name!r} "
                f"({', '.join(left[:SHOWN])}); it was made for another model"
            )
        if left:
            notes.append(
                f"{name}: {len(left)} of {len(whole)} layers of {concept.source!r} are not in this model "
                f"and are left out ({', '.join(left[:SHOWN])}{', ...' if len(left) > SHOWN else ''})"
            )
        for part, module in modules.items():
            fit(module, f"{part}.", {concept.source: adapter})
        _check_words(concept, model)
        taken[name] = replace(concept, adapter=adapter, weights={})
        fits[name] = f"{len(adapter)} of {len(whole)} layers"
    return Fitted(taken, tuple(notes), fits)


def _check_words(concept: Concept, model: Model) -> None:
    """A word has a vector of the right width for every text encoder, for one layer or for each that reads text."""
    layers = len(cross_numbers(attention_layers(model.unet)))
    for word, parts in concept.words.items():
        for encoder in model.encoders:
            width = encoder.module.config.hidden_size
            shape = tuple(parts[encoder.name].shape) if encoder.name in parts else None
            if shape is None or shape[2] != width or shape[0] not in (1, layers):
                raise ConceptError(
                    f"concept {concept.source!r}: its word {word!r} is {shape or 'not there'} for {encoder.name} "
                    f"(layers, vectors, width), the model {model.facts.name!r} wants 1 or {layers} layers of width "
                    f"{width}; it was made for another model"
                )


def check_classes(scene: Scene, concepts: Mapping[str, Concept]) -> None:
    """Every member is something to the base model. Raises ConceptError for one of which nobody says what."""
    for name, member in scene.cast.items():
        if not (member.class_name or concepts[name].class_name):
            raise ConceptError(
                f"concept {member.concept!r} does not say what it is; set cast.{name}.class_name, for example to woman"
            )


def check_prompts(scene: Scene, concepts: Mapping[str, Concept], style: Concept | None, model: Model) -> None:
    """Every prompt can be read and holds the words that were taught: found out before anything is drawn."""
    classes = class_names(scene, concepts)
    prompts = [global_prompt(scene, classes), scene.negative_prompt]
    prompts += [member_prompt(scene, name, classes, concepts[name]) for name in scene.cast]
    prompts += [member.negative_prompt or "" for member in scene.cast.values()]
    for prompt in prompts:
        read(model.encoders[0].tokenizer, prompt)
    for name, concept in concepts.items():
        _check_said(f"cast.{name}", member_prompt(scene, name, classes, concept), concept, model)
    if style is not None:
        _check_said("style", global_prompt(scene, classes), style, model)
    deepest = min(encoder.module.config.num_hidden_layers for encoder in model.encoders)
    if (scene.clip_skip or 1) > deepest:
        raise SceneError(
            f"clip_skip {scene.clip_skip}: the model's text encoders have {deepest} layers; want at most that"
        )


def without_trigger(scene: Scene, concepts: Mapping[str, Concept]) -> tuple[str, ...]:
    """A line for each member that its own prompt calls by nothing but its class, as it may not be known by that."""
    return tuple(
        f"{name}: {concepts[name].source!r} tells no trigger, so its prompt says {noun!r} alone; if it has one, "
        f"set cast.{name}.trigger"
        for name, noun in class_names(scene, concepts).items()
        if not concepts[name].trigger and scene.cast[name].prompt is None
    )


def _check_said(whose: str, prompt: str, concept: Concept, model: Model) -> None:
    """Raises SceneError where a prompt lacks a word that the concept was taught as: it would go without it."""
    said = {word for _, word, _ in read(model.encoders[0].tokenizer, prompt, vector_counts(concept.words)).learned}
    for word in concept.words.keys() - said:
        raise SceneError(
            f"{whose}: {concept.source!r} was taught as {word!r}, which {prompt!r} does not say; "
            "write it there, or leave trigger and prompt to the concept"
        )
