"""A scene and its concepts checked against the model, with every open field filled in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from costars.builtin.vocabulary import describe_unknown_words
from costars.concepts.cast import collect_errors
from costars.errors import ConceptError, SceneError
from costars.methods.prompts import global_prompt, member_nouns, member_prompt, own_words
from costars.model.adapters import group_by_layer, select_layers, subtract_base_weights
from costars.model.families import count_cross_layers
from costars.model.model import Model
from costars.model.prompt_weighting import parse_prompt
from costars.model.schedulers import make_scheduler
from costars.model.sizes import describe_size
from costars.model.text_encoder import count_vectors
from costars.resolved_scene import Member, ResolvedScene
from costars.scene.defaults import fill_defaults
from costars.scene.prompt_syntax import find_foreign_syntax, find_prompt_notes
from costars.scene.scene import BUILTIN, Scene
from costars.segment.mask_files import check_mask, check_mask_files, describe_masks, has_mask_file
from costars.types import Concept

SHOWN = 3  # names of layers in a note
STYLE = "style"  # the field of a scene's style
MOST_MISSING = 0.5  # share of a part's layers that may be missing; more are a misread file or another model
_STYLE = "{style}"  # how messages name the style; no member can have this name


def resolve_scene(
    scene: Scene, model: Model, concepts: Mapping[str, Concept], style: Concept | None = None
) -> ResolvedScene:
    """The scene with its members resolved and what it leaves open filled in; concepts {member: concept}.

    Raises SceneError or ConceptError for what does not fit together, before anything is drawn.
    """
    scene = fill_defaults(scene)
    scheduler = make_scheduler(scene.scheduler, model.scheduler)
    named = {**concepts, **({_STYLE: style} if style else {})}
    allowed = {name for name, member in scene.cast.items() if member.allow_missing_layers}
    if scene.style is not None and scene.style.allow_missing_layers:
        allowed.add(_STYLE)
    matched_concepts, notes, layer_counts = _match_each(scene, named, model, allowed)
    style = matched_concepts.pop(_STYLE, None)
    for name, member in scene.cast.items():
        if member.trigger:
            matched_concepts[name] = replace(matched_concepts[name], trigger=member.trigger)
    _check_nouns(scene, matched_concepts)
    _check_triggers(scene, matched_concepts)
    size_px = scene.size or model.info.size_px
    model.latent_size(size_px)
    check_mask_files(scene.cast, size_px)
    members = _resolve_members(scene, matched_concepts)
    prompt = global_prompt(scene, {name: member.noun for name, member in members.items()})
    _check_prompts(scene, members, prompt, style, model)
    assert scene.lowest_score is not None and scene.steps is not None, "fill_defaults fills them for every scene"
    return ResolvedScene(
        scene=scene,
        model=model,
        scheduler=scheduler,
        members=members,
        prompt=prompt,
        size_px=size_px,
        steps=scene.steps,
        start=scene.start or 0.0,  # a method without a start has no default for it
        lowest_score=scene.lowest_score,
        options=scene.method,
        style=style,
        notes=(
            *model.info.notes,
            *notes,
            *describe_size(size_px, model.info),
            *describe_masks(scene.cast),
            *_unknown_word_notes(scene, model, prompt, members),
            *_triggerless_notes(members),
            *_prompt_notes(scene, members, prompt, style),
        ),
        layer_counts=layer_counts,
    )


def concept_names(scene: Scene) -> dict[str, str]:
    """{field: name or path} of the concepts that a scene needs, such as {"cast.ana": "builtin/ana"}."""
    names = {f"cast.{name}": member.concept for name, member in scene.cast.items()}
    return names | ({STYLE: scene.style.concept} if scene.style else {})


def check_files(scene: Scene) -> None:
    """Check the mask files and control images of a scene without its model; raises SceneError for all at once."""
    problems = []
    size_px = scene.size if scene.size and not any(side % 8 for side in scene.size) else None  # else the size is wrong
    for name, member in scene.cast.items():
        if has_mask_file(member):
            try:
                check_mask(member, size_px)
            except SceneError as error:
                problems.append(f"cast.{name}.{error}")
    for i, control in enumerate(scene.controls):
        if not Path(control.image).is_file():
            problems.append(f"controls.{i}.image: no such file: {control.image}")
    if problems:
        raise SceneError("; ".join(problems))


def _match_each(
    scene: Scene, concepts: Mapping[str, Concept], model: Model, allow_missing: Collection[str]
) -> MatchedConcepts:
    """match_concepts; its errors name the member and its file, and those of all members come at once."""
    fields = {STYLE if name == _STYLE else f"cast.{name}": name for name in concepts}
    given = concept_names(scene)
    names = {field: given.get(field, "") for field in fields}
    matched = collect_errors(
        names, lambda field: match_concepts({fields[field]: concepts[fields[field]]}, model, allow_missing)
    ).values()
    return MatchedConcepts(
        {name: concept for each in matched for name, concept in each.concepts.items()},
        tuple(note for each in matched for note in each.notes),
        {name: count for each in matched for name, count in each.layer_counts.items()},
    )


def _resolve_members(scene: Scene, concepts: Mapping[str, Concept]) -> dict[str, Member]:
    """Every member of the cast, in the prompt's order."""
    nouns = member_nouns(scene, concepts)
    members = {}
    for name, noun in nouns.items():
        given, concept = scene.cast[name], concepts[name]
        words = own_words(concept, noun)
        members[name] = Member(
            name=name,
            concept=concept,
            noun=noun,
            words=words,
            phrase=given.segment_phrase or noun,
            prompt=member_prompt(scene, name, nouns, words),
            given_prompt=given.prompt is not None,
            negative_prompt=given.negative_prompt,
            weight=given.weight,
        )
    return members


class MatchedConcepts(NamedTuple):
    """Concepts reduced to the layers of a model, notes on what is left out, and {name: "12 of 12 layers"}."""

    concepts: dict[str, Concept]
    notes: tuple[str, ...]
    layer_counts: dict[str, str]


def match_concepts(
    concepts: Mapping[str, Concept], model: Model, allow_missing: Collection[str] = ()
) -> MatchedConcepts:
    """Reduce concepts to the layers that the model has.

    Raises ConceptError for one of another family, of other sizes, of which no layer is in the model, or most layers of
    a part are not, unless its name is in allow_missing.
    """
    modules = {"unet": model.unet, **{e.name: e.module for e in model.encoders}}
    taken, notes, layer_counts = {}, [], {}
    for name, concept in concepts.items():
        if concept.family not in ("", model.info.family):
            raise ConceptError(
                f"concept {concept.source!r} is for {concept.family}, the model {model.info.name!r} is "
                f"{model.info.family}; use a concept or a model of the other's family"
            )
        if not concept.family:
            notes.append(
                f"{name}: {concept.source!r} does not say which base model it is for; its layers are in this one"
            )
        notes += [f"{name}: {note}" for note in concept.notes]
        whole = {**concept.adapter, **subtract_base_weights(concept.weights, modules, concept.source)}
        adapter, left = select_layers(whole, modules)
        if left and not adapter:
            raise ConceptError(
                f"concept {concept.source!r}: none of its {len(left)} layers is in the model {model.info.name!r} "
                f"({', '.join(left[:SHOWN])}); it was made for another model"
            )
        if name not in allow_missing:
            _check_missing(name, concept, whole, left, model)
        if left:
            notes.append(
                f"{name}: {len(left)} of {len(whole)} layers of {concept.source!r} are not in this model "
                f"and are left out ({', '.join(left[:SHOWN])}{', ...' if len(left) > SHOWN else ''})"
            )
        for part, module in modules.items():
            group_by_layer(module, f"{part}.", {concept.source: adapter})
        _check_words(concept, model)
        taken[name] = replace(concept, adapter=adapter, weights={})
        layer_counts[name] = f"{len(adapter)} of {len(whole)} layers"
    return MatchedConcepts(taken, tuple(notes), layer_counts)


def _check_missing(name: str, concept: Concept, whole: Collection[str], left: list[str], model: Model) -> None:
    """Raises ConceptError for a concept of which most layers of a part are not in the model."""
    counts, missing = (Counter(path.partition(".")[0] for path in paths) for paths in (whole, left))
    for part, count in missing.items():
        if count > MOST_MISSING * counts[part]:
            field = "style" if name == _STYLE else f"cast.{name}"
            example = next(path for path in left if path.startswith(part))
            raise ConceptError(
                f"concept {concept.source!r}: {count} of its {counts[part]} layers of {part} are not in the model "
                f"{model.info.name!r} ({example}, ...); use a concept for this model, or set "
                f"{field}.allow_missing_layers: true to draw without them"
            )


def _check_words(concept: Concept, model: Model) -> None:
    """A word has a vector of the right width for every text encoder, for one layer or for each that reads text."""
    layers = count_cross_layers(model.unet)
    for word, parts in concept.words.items():
        for encoder in model.encoders:
            width = encoder.module.config.hidden_size
            shape = tuple(parts[encoder.name].shape) if encoder.name in parts else None
            if shape is None or shape[2] != width or shape[0] not in (1, layers):
                raise ConceptError(
                    f"concept {concept.source!r}: its word {word!r} is {shape or 'not there'} for {encoder.name} "
                    f"(layers, vectors, width), the model {model.info.name!r} wants 1 or {layers} layers of width "
                    f"{width}; it was made for another model"
                )


def _check_nouns(scene: Scene, concepts: Mapping[str, Concept]) -> None:
    """Raises ConceptError for a member of which neither the scene nor its file says what it is."""
    for name, member in scene.cast.items():
        if not (member.class_name or concepts[name].class_name):
            raise ConceptError(
                f"concept {member.concept!r} does not say what it is; set cast.{name}.class_name, for example to woman"
            )


def _check_triggers(scene: Scene, concepts: Mapping[str, Concept]) -> None:
    """Raises ConceptError for a trigger of a file that has syntax of other programs."""
    for name in scene.cast:
        concept = concepts[name]
        if problem := find_foreign_syntax(concept.trigger):
            raise ConceptError(f"concept {concept.source!r}: its trigger has {problem}; or set cast.{name}.trigger")


def _check_prompts(
    scene: Scene, members: Mapping[str, Member], prompt: str, style: Concept | None, model: Model
) -> None:
    """Raises SceneError for a prompt that cannot be parsed or lacks a learned word."""
    prompts = [prompt, scene.negative_prompt, *(members[name].prompt for name in scene.cast)]
    prompts += [members[name].negative_prompt or "" for name in scene.cast]
    for each in prompts:
        parse_prompt(model.encoders[0].tokenizer, each)
    for member in (members[name] for name in scene.cast):
        _check_learned_words(f"cast.{member.name}", member.prompt, member.concept, model)
    if style is not None:
        _check_learned_words("style", prompt, style, model)
    deepest = min(encoder.module.config.num_hidden_layers for encoder in model.encoders)
    if (scene.clip_skip or 1) > deepest:
        raise SceneError(
            f"clip_skip {scene.clip_skip}: the model's text encoders have {deepest} layers; want 1 to {deepest}"
        )


def _prompt_notes(scene: Scene, members: Mapping[str, Member], prompt: str, style: Concept | None) -> tuple[str, ...]:
    """A note for everything in a prompt that is probably not read as it was meant."""
    shared = frozenset(style.words if style else ())
    found = {"prompt": find_prompt_notes(prompt, shared)}
    found["negative_prompt"] = find_prompt_notes(scene.negative_prompt, shared)
    for name, member in members.items():
        own = shared | frozenset(member.concept.words)
        if member.given_prompt or member.concept.trigger:
            found[f"cast.{name}.prompt"] = find_prompt_notes(member.prompt, own)
        found[f"cast.{name}.negative_prompt"] = find_prompt_notes(member.negative_prompt or "", own)
    lines: dict[str, str] = {}  # {note: the first field that it is about}
    for field, notes in found.items():
        for note in notes:
            lines.setdefault(note, field)
    return tuple(f"{field}: {note}" for note, field in lines.items())


def _unknown_word_notes(scene: Scene, model: Model, prompt: str, members: Mapping[str, Member]) -> tuple[str, ...]:
    """A note on words that the built-in model does not know; other models know parts of words too."""
    if model.info.name != BUILTIN:
        return ()
    own = [text for member in scene.cast.values() for text in (member.prompt, member.negative_prompt) if text]
    taught = " ".join(word for m in members.values() for word in (m.concept.trigger, *m.concept.words)).lower()
    return describe_unknown_words(
        model.encoders[0].tokenizer, [prompt, scene.negative_prompt, *own], re.findall(r"[^\W\d_]+", taught)
    )


def _triggerless_notes(members: Mapping[str, Member]) -> tuple[str, ...]:
    """A note for each member without a trigger: its concept may not respond to its class alone."""
    return tuple(
        f"{name}: {member.concept.source!r} states no trigger, so its prompt says {member.noun!r} alone; "
        f"if it has one, set cast.{name}.trigger"
        for name, member in members.items()
        if not member.concept.trigger and not member.given_prompt
    )


def _check_learned_words(field: str, prompt: str, concept: Concept, model: Model) -> None:
    """Raises SceneError where a prompt lacks a learned word of the concept: it would be drawn without it."""
    found = {
        word for _, word, _ in parse_prompt(model.encoders[0].tokenizer, prompt, count_vectors(concept.words)).learned
    }
    for word in concept.words.keys() - found:
        raise SceneError(
            f"{field}: {concept.source!r} has the learned word {word!r}, which the prompt {prompt!r} lacks; "
            "write it there, or leave trigger and prompt unset"
        )
