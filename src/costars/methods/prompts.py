"""A scene's prompt, as each path reads it."""

from __future__ import annotations

from collections.abc import Mapping

from costars.scene import Scene
from costars.types import Concept


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def class_names(scene: Scene, concepts: Mapping[str, Concept]) -> dict[str, str]:
    """What each member is to the base model, in the prompt's order."""
    return {name: scene.cast[name].class_name or concepts[name].class_name for name in scene.slots()}


def global_prompt(scene: Scene, classes: Mapping[str, str]) -> str:
    """Every slot as "a <class>": no identity is known to the base model (OMG, section 3.3)."""
    return scene.prompt.format_map({name: article(noun) for name, noun in classes.items()})


def member_prompt(scene: Scene, member: str, classes: Mapping[str, str], concept: Concept) -> str:
    """The global prompt with the member's own slot as "a <trigger> <class>", or what the scene says."""
    given = scene.cast[member].prompt
    if given is not None:
        return given
    named = {name: article(noun) for name, noun in classes.items()}
    return scene.prompt.format_map(named | {member: own_words(concept, classes[member])})


def everyone_prompt(scene: Scene, classes: Mapping[str, str], concepts: Mapping[str, Concept]) -> str:
    """Every slot as "a <trigger> <class>": one prompt for all adapters at once."""
    return scene.prompt.format_map({name: own_words(concepts[name], noun) for name, noun in classes.items()})


def own_words(concept: Concept, class_name: str) -> str:
    """How a concept is called in a prompt: its trigger and its class."""
    return article(f"{concept.trigger} {class_name}".strip())
