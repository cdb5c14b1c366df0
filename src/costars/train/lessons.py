"""What is taught: one concept with its pictures, and how they are called."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from costars.errors import TrainError
from costars.train.data import Example
from costars.train.recipes import Recipe


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


def sha256_of(teachings: Sequence[Teaching]) -> str:
    """Of all that is taught: what it is called, captions, pictures and masks."""
    found = hashlib.sha256()
    for teaching in teachings:
        found.update(repr((teaching.name, teaching.class_name, teaching.trigger)).encode())
        for example in teaching.examples:
            found.update(repr((example.caption, example.image.size, example.mask is None)).encode())
            found.update(example.image.tobytes() + (b"" if example.mask is None else example.mask.tobytes()))
    return found.hexdigest()


def check(teaching: Teaching, recipe: Recipe) -> None:
    """Raises TrainError where there is no picture, or a caption lacks the trigger; EM writes its own captions.

    A word that is learned is another where its letters are of another case.
    """
    case = re.NOFLAG if recipe.words else re.IGNORECASE
    if not teaching.examples:
        raise TrainError(f"{teaching.name}: no pictures; want at least one, better 4 to 20")
    for example in () if recipe.em else teaching.examples:
        if not re.search(_word(teaching.trigger), example.caption or "", case):
            where = f" of {example.name}" if example.name else ""
            raise TrainError(
                f"{teaching.name}: the caption{where}, {example.caption!r}, lacks the trigger {teaching.trigger!r}; "
                "write it before the word that says what it is"
            )


def new_words(name: str, count: int) -> str:
    """The trigger of a concept that so many words are learned for; no text encoder knows them."""
    return f"<{name}>" if count == 1 else " ".join(f"<{name}{i + 1}>" for i in range(count))
