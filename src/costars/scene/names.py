"""The rules for names and words that a person writes: scenes, imports, models and training share them."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator

MAX_NAME = 64  # characters
MAX_WORDS = 500  # characters of a class, trigger or phrase
NAME_RULE = (
    f"a name has letters of any language, digits, - and _, begins with a letter or digit, has at least one letter and "
    f"at most {MAX_NAME} characters"
)
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?")
_LETTER, _MARK, _DIGIT = "L", "M", "N"  # general categories of Unicode; marks are part of letters in many scripts


def is_name(text: str) -> bool:
    """Whether a text is a name: of a slot in a prompt, a member of the cast, or a concept."""
    kinds = [unicodedata.category(character)[0] for character in text]
    if not kinds or len(text) > MAX_NAME or kinds[0] not in (_LETTER, _DIGIT) or _LETTER not in kinds:
        return False
    return all(kind in (_LETTER, _MARK, _DIGIT) or c in "-_" for kind, c in zip(kinds, text, strict=True))


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id, org/name or org/name@revision; ./name and ../name are paths."""
    return _HUB_ID.fullmatch(name) is not None


def suggest_name(text: str) -> str:
    """A name made of a text, for error messages: every other character becomes _."""
    changed = "".join(c if is_name(f"a{c}") else "_" for c in normalize_name(text)).strip("-_")[:MAX_NAME]
    return changed if is_name(changed) else "ana"


def normalize_name(text: str) -> str:
    """The text in Unicode's composed form (NFC), in which equal names are equal: file systems may decompose accents."""
    return unicodedata.normalize("NFC", text)


def find_words_problem(words: str) -> str | None:
    """Why words cannot be a class, trigger or phrase, such as "is blank"; None if they can."""
    if not words.strip():
        return "is blank; write a word"
    if not words.isprintable():
        return "has a line break or another character that is not printed; write one plain line"
    if len(words) > MAX_WORDS:
        return f"has {len(words)} characters; want at most {MAX_WORDS}"
    if set(words) & set("{}"):
        return "has a brace, which stands for a slot; write it without { and }"
    return None


def _check_words(words: str) -> str:
    if problem := find_words_problem(words):
        raise ValueError(f"{words[:MAX_NAME]!r} {problem}")
    return words


Words = Annotated[str, AfterValidator(_check_words)]  # a class, trigger or phrase
