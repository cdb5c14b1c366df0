"""What is taught: one concept with its pictures, and how they are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from costars.errors import TrainError
from costars.train.data import Example


@dataclass(frozen=True)
class Teaching:
    """Pictures of one concept, each with a caption that holds its trigger.

    The trigger is a word that the text encoders know, or the new words that the recipe teaches,
    one after the other.
    """

    name: str
    class_name: str
    trigger: str
    examples: Sequence[Example]

    @property
    def words(self) -> tuple[str, ...]:
        """The trigger, word by word."""
        return tuple(self.trigger.split())

    def without(self) -> tuple[str, ...]:
        """Captions of the class, not of the concept: each of its own once, without the trigger."""
        own = re.compile(rf"\s*{_word(self.trigger)}", re.IGNORECASE)
        said = (own.sub("", example.caption or "").strip() for example in self.examples)
        return tuple(dict.fromkeys(re.sub(r"\ban (?=[^aeiou])", "a ", caption) for caption in said))


def _word(words: str) -> str:
    return rf"(?<!\w){re.escape(words)}(?!\w)"


def check(teaching: Teaching, described: bool = True) -> None:
    """Raises TrainError where there is no picture, or a caption, where they are described, lacks the trigger."""
    if not teaching.examples:
        raise TrainError(f"{teaching.name}: no pictures; want at least one, better 4 to 20")
    for example in teaching.examples if described else ():
        if not re.search(_word(teaching.trigger), example.caption or "", re.IGNORECASE):
            where = f" of {example.name}" if example.name else ""
            raise TrainError(
                f"{teaching.name}: the caption{where}, {example.caption!r}, lacks the trigger {teaching.trigger!r}; "
                "write it before the word that says what it is"
            )


def new_words(name: str, count: int) -> str:
    """The trigger of a concept that so many words are learned for; no text encoder knows them."""
    return f"<{name}>" if count == 1 else " ".join(f"<{name}{i + 1}>" for i in range(count))
