"""A scene's prompt, as each path reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Formatter

from transformers import CLIPTokenizer

from costars.errors import SceneError
from costars.model.prompt_weighting import unemphasised
from costars.model.text_encoder import word_spans
from costars.scene.scene import Scene
from costars.types import Concept, LearnedWords


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def class_names(scene: Scene, concepts: Mapping[str, Concept]) -> dict[str, str]:
    """What each member is to the base model, in the prompt's order."""
    return {name: scene.cast[name].class_name or concepts[name].class_name for name in scene.slots()}


def global_prompt(scene: Scene, classes: Mapping[str, str]) -> str:
    """Every slot as "a <class>": no identity is known to the base model (OMG, section 3.3)."""
    return scene.prompt.format_map({name: article(unemphasised(noun)) for name, noun in classes.items()})


def member_prompt(scene: Scene, member: str, classes: Mapping[str, str], concept: Concept) -> str:
    """The global prompt with the member's own slot as "a <trigger> <class>", or what the scene says."""
    given = scene.cast[member].prompt
    if given is not None:
        return given
    named = {name: article(unemphasised(noun)) for name, noun in classes.items()}
    own = unemphasised(own_words(concept, classes[member]))
    return scene.prompt.format_map(named | {member: article(own)})


def everyone_prompt(scene: Scene, classes: Mapping[str, str], concepts: Mapping[str, Concept]) -> str:
    """Every slot as "a <trigger> <class>": one prompt for all adapters at once."""
    own = {name: unemphasised(own_words(concepts[name], noun)) for name, noun in classes.items()}
    return scene.prompt.format_map({name: article(words) for name, words in own.items()})


def own_words(concept: Concept, class_name: str) -> str:
    """How a concept is called in a prompt: its trigger and its class."""
    return f"{concept.trigger} {class_name}".strip()


def own_tokens(
    tokenizer: CLIPTokenizer,
    scene: Scene,
    member: str,
    classes: Mapping[str, str],
    concept: Concept,
    learned: LearnedWords,
) -> list[int]:
    """The token positions of a member's own words in its own prompt, where these words were learned.

    Where another of its class stands before it, that one's words are not meant; in a prompt that the
    scene gives, every occurrence is. Raises SceneError where there is none.
    """
    words, prompt = own_words(concept, classes[member]), member_prompt(scene, member, classes, concept)
    spans, given = word_spans(tokenizer, prompt, words, learned), scene.cast[member].prompt is not None
    if not given:
        first = len(word_spans(tokenizer, _before(scene, member, classes), words, learned))
        spans = spans[first : first + 1]
    tokens = [i for span in spans for i in span]
    if not tokens:
        mend = "write them there" if given else f"let {{{member}}} stand as a word of its own"
        where = f"cast.{member}.prompt" if given else "prompt"
        raise SceneError(
            f"{where}: {prompt!r} does not hold the words {words!r}, so they cannot be kept to {member}'s place; "
            f"{mend}, or set method.own_words_share=0"
        )
    return tokens


def tokens_of(tokenizer: CLIPTokenizer, prompt: str, nouns: Iterable[str], learned: LearnedWords) -> list[int]:
    """The token positions of every occurrence of these words in a prompt, in its order."""
    return sorted({i for noun in nouns for span in word_spans(tokenizer, prompt, noun, learned) for i in span})


def _before(scene: Scene, member: str, classes: Mapping[str, str]) -> str:
    """The global prompt as far as the member's slot."""
    text = ""
    for literal, name, _, _ in Formatter().parse(scene.prompt):
        text += literal
        if name == member:
            break
        text += "" if name is None else article(unemphasised(classes[name]))
    return text
