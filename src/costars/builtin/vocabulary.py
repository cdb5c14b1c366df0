"""Which words of a prompt the built-in model does not know."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from difflib import get_close_matches

from transformers import CLIPTokenizer

END_OF_WORD = "</w>"


def describe_unknown_words(
    tokenizer: CLIPTokenizer, texts: Iterable[str], known: Container[str] = ()
) -> tuple[str, ...]:
    """A note that names the words of these texts that the built-in tokenizer has no token for; none if there are none.

    known are further words, in lower case, such as the triggers of concepts.
    """
    unknown = dict.fromkeys(word for text in texts for word in find_unknown_words(tokenizer, text, known))
    if not unknown:
        return ()
    words = [token.removesuffix(END_OF_WORD) for token in tokenizer.get_vocab() if token.endswith(END_OF_WORD)]
    named = [_with_hint(word, words) for word in unknown]
    return (
        f"the built-in model does not know {', '.join(named)} and draws something else for it; it knows men, women, "
        "dogs, cats and robots in the places that the README lists",
    )


def find_unknown_words(tokenizer: CLIPTokenizer, text: str, known: Container[str] = ()) -> Iterator[str]:
    """The words of a text that the tokenizer spells by letters."""
    for word in re.findall(r"[^\W\d_]+", text.lower()):
        if word not in known and len(tokenizer.tokenize(word)) > 1:
            yield word


def _with_hint(word: str, words: list[str]) -> str:
    close = get_close_matches(word, [other for other in words if len(other) > 2], n=1, cutoff=0.8)
    return f"{word!r} (did you mean {close[0]!r}?)" if close else repr(word)
