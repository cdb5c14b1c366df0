"""The prompt of each path, made from the scene's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Formatter

from transformers import CLIPTokenizer

from costars.errors import SceneError
from costars.model.text_encoder import find_word_spans
from costars.resolved_scene import Member, ResolvedScene
from costars.scene.prompt_syntax import escape_brackets, to_plain_text
from costars.scene.scene import Scene
from costars.types import Concept, LearnedWords


def with_article(noun: str) -> str:
    """The noun with "a" or "an"; brackets and escapes before it do not count."""
    first = noun.lstrip("([\\")[:1].lower()
    return f"{'an' if first and first in 'aeiou' else 'a'} {noun}"


def member_nouns(scene: Scene, concepts: Mapping[str, Concept]) -> dict[str, str]:
    """{member: what it is to the base model}, in the prompt's order."""
    return {name: scene.cast[name].class_name or concepts[name].class_name for name in scene.slots()}


def own_words(concept: Concept, noun: str) -> str:
    """How a prompt calls a concept, written as in a prompt: its trigger, which may have emphasis, and its noun."""
    return f"{concept.trigger} {escape_brackets(noun)}".strip()


def global_prompt(scene: Scene, nouns: Mapping[str, str]) -> str:
    """Every slot as "a <noun>": the base model knows no identity (OMG, section 3.3)."""
    return scene.prompt.format_map({name: with_article(escape_brackets(noun)) for name, noun in nouns.items()})


def member_prompt(scene: Scene, member: str, nouns: Mapping[str, str], words: str) -> str:
    """The prompt that the scene gives the member, else the global one with its slot as "a <trigger> <noun>"."""
    given = scene.cast[member].prompt
    if given is not None:
        return given
    slots = {name: with_article(escape_brackets(noun)) for name, noun in nouns.items()}
    return scene.prompt.format_map(slots | {member: with_article(words)})


def everyone_prompt(resolved: ResolvedScene) -> str:
    """Every slot as "a <trigger> <noun>": one prompt for all adapters at once."""
    slots = {name: with_article(member.words) for name, member in resolved.members.items()}
    return resolved.scene.prompt.format_map(slots)


def own_tokens(tokenizer: CLIPTokenizer, resolved: ResolvedScene, member: Member, learned: LearnedWords) -> list[int]:
    """Token positions of a member's own words in its own prompt.

    In a derived prompt only the occurrence in the member's slot counts, in a given one every occurrence.
    Raises SceneError where there is none.
    """
    spans = find_word_spans(tokenizer, member.prompt, member.words, learned)
    if not member.given_prompt:
        before = _prompt_before(resolved.scene, member.name, resolved.nouns)
        first = len(find_word_spans(tokenizer, before, member.words, learned))
        spans = spans[first : first + 1]
    tokens = [i for span in spans for i in span]
    if not tokens:
        given = member.given_prompt
        remedy = "write them there" if given else f"write {{{member.name}}} as a word of its own"
        where = f"cast.{member.name}.prompt" if given else "prompt"
        raise SceneError(
            f"{where}: {member.prompt!r} does not contain {to_plain_text(member.words)!r}, so these words cannot be "
            f"limited to {member.name}'s mask; {remedy}, or set method.own_words_share=0"
        )
    return tokens


def word_tokens(tokenizer: CLIPTokenizer, prompt: str, nouns: Iterable[str], learned: LearnedWords) -> list[int]:
    """Token positions of every occurrence of these nouns in a prompt, in ascending order."""
    words = [escape_brackets(noun) for noun in nouns]
    return sorted({i for word in words for span in find_word_spans(tokenizer, prompt, word, learned) for i in span})


def _prompt_before(scene: Scene, member: str, nouns: Mapping[str, str]) -> str:
    """The global prompt up to the member's slot."""
    text = ""
    for literal, name, _, _ in Formatter().parse(scene.prompt):
        text += literal
        if name == member:
            break
        text += "" if name is None else with_article(escape_brackets(nouns[name]))
    return text
