"""The words for a scene: phrases for attributes, relations, actions, places and styles, and the vocabulary."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from costars_world.world2.render.identity import Identity
from costars_world.world2.render.phrases import all_phrases, phrases, prefix
from costars_world.world2.render.places import PLACES
from costars_world.world2.render.styles import STYLE_PHRASES

MAX_TOKENS = 72  # words and commas; leaves room for start and end in a context of 77
ACTION_WORDS = {"sitting": "sitting", "waving": "waving", "jumping": "jumping"}
JOINING = ("and", "next to", "to the left of", "to the right of", "in front of", "behind")
_TOKEN = re.compile(r"[a-z]+|,")


def tokens(caption: str) -> list[str]:
    """The words and commas of a caption."""
    return _TOKEN.findall(caption)


def write_caption(
    rng: random.Random,
    cast: Sequence[Identity],
    actions: Sequence[str],
    relation: str,
    place: str,
    style: str,
    detail: float,
) -> str:
    """The caption of a scene; each attribute is named with probability detail, as far as MAX_TOKENS allows."""
    named = [[p for p in phrases(who) if rng.random() < detail] for who in cast]
    prefixed = [rng.random() < detail for _ in cast]
    while True:
        nouns = [
            noun(who, action, words, coloured)
            for who, action, words, coloured in zip(cast, actions, named, prefixed, strict=True)
        ]
        caption = f"{STYLE_PHRASES[style]}{_joined(nouns, relation)} {PLACES[place].phrase}"
        longest = max(named, key=len)
        if len(tokens(caption)) <= MAX_TOKENS or not longest:
            return caption
        longest.pop(rng.randrange(len(longest)))


def noun(who: Identity, action: str, named: Sequence[str], coloured: bool) -> str:
    """A figure's words: article, colour, class, attribute phrases and action."""
    head = f"{prefix(who)} {who.class_name}" if coloured and prefix(who) else who.class_name
    words = [*named, "arms raised"] if action == "arms raised" else list(named)
    text = f"{'an' if head[0] in 'aeiou' else 'a'} {head}"
    if words:
        text += f" with {' and '.join(words)}"
    return f"{text} {ACTION_WORDS[action]}" if action in ACTION_WORDS else text


def listed(nouns: Sequence[str]) -> str:
    """Nouns as a list: "a, b and c"."""
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"


def _joined(nouns: Sequence[str], relation: str) -> str:
    if relation in ("alone", "and"):
        return listed(nouns)
    if relation in JOINING:
        return f"{nouns[0]} {relation} {listed(nouns[1:])}"
    pair = f"{nouns[0]} {relation} {nouns[1]}"
    return f"{pair} next to {listed(nouns[2:])}" if len(nouns) > 2 else pair


def vocabulary() -> list[str]:
    """Every word and mark that captions may hold, sorted."""
    text = [*all_phrases(), *STYLE_PHRASES.values(), *JOINING, *ACTION_WORDS.values()]
    text += [place.phrase for place in PLACES.values()]
    text += ["a an and with , arms raised standing holding hands with hugging carrying riding in"]
    return sorted({word for line in text for word in tokens(line)})
