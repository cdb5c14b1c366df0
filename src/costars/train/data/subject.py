"""What is taught: one concept with its pictures, and how they are called."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from costars.errors import TrainError
from costars.train.data.images import Example
from costars.train.recipes import Recipe


@dataclass(frozen=True)
class TrainingSubject:
    """Pictures of one concept, each with a caption that holds its trigger.

    The trigger is a word that the text encoders know, or the new words that the recipe teaches,
    one after the other. class_examples are of others of the class, each with a caption that holds no trigger:
    they are learned from in place of pictures that the model draws. A background is what is around the others
    in a picture (EM).
    """

    name: str
    class_name: str
    trigger: str
    examples: Sequence[Example]
    class_examples: Sequence[Example] = ()
    background: bool = False

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """The trigger, word by word."""
        return tuple(self.trigger.split())

    def class_captions(self) -> tuple[str, ...]:
        """Captions of the class, not of the concept: each of its own once, without the trigger."""
        own = re.compile(rf"\s*{_word(self.trigger)}", re.IGNORECASE)
        said = (own.sub("", example.caption or "").strip() for example in self.examples)
        return tuple(dict.fromkeys(re.sub(r"\ban (?=[^aeiou])", "a ", caption) for caption in said))


def _word(words: str) -> str:
    return rf"(?<!\w){re.escape(words)}(?!\w)"


def hash_subjects(teachings: Sequence[TrainingSubject]) -> str:
    """Of all that is taught: what it is called, captions, pictures and masks, those of the class as well."""
    found = hashlib.sha256()
    for teaching in teachings:
        found.update(repr((teaching.name, teaching.class_name, teaching.trigger)).encode())
        found.update(b"background" if teaching.background else b"")
        found.update(repr(len(teaching.examples)).encode() if teaching.class_examples else b"")
        for example in (*teaching.examples, *teaching.class_examples):
            found.update(repr((example.caption, example.image.size, example.mask is None)).encode())
            found.update(example.image.tobytes() + (b"" if example.mask is None else example.mask.tobytes()))
    return found.hexdigest()


def check_subject(teaching: TrainingSubject, recipe: Recipe) -> None:
    """Raises TrainError where there is no picture, or a caption lacks the trigger; EM writes its own captions.

    A word that is learned is another where its letters are of another case.
    """
    case = re.NOFLAG if recipe.num_new_tokens else re.IGNORECASE
    if not teaching.examples:
        raise TrainError(f"{teaching.name}: no pictures; want at least one, better 4 to 20")
    for example in () if recipe.em else teaching.examples:
        if not re.search(_word(teaching.trigger), example.caption or "", case):
            where = f" of {example.name}" if example.name else ""
            raise TrainError(
                f"{teaching.name}: the caption{where}, {example.caption!r}, lacks the trigger {teaching.trigger!r}; "
                "write it before the word that says what it is"
            )


def collect_class_examples(teachings: Sequence[TrainingSubject], recipe: Recipe) -> list[Example]:
    """The given class pictures of all concepts, none where the model draws them.

    Raises TrainError where the recipe does not use them, a concept has none beside one that has, or a caption
    is missing or holds a trigger.
    """
    found = [example for teaching in teachings for example in teaching.class_examples]
    for teaching in teachings if found else ():
        if not recipe.prior_loss_weight:
            use = "leave class_images out" if recipe.em else "set prior_loss_weight=1, or leave class_images out"
            raise TrainError(f"{teaching.name}: class_images, but prior_loss_weight=0 learns nothing from them; {use}")
        if not teaching.class_examples:
            raise TrainError(
                f"{teaching.name}: no class_images, but another concept has some; give all of them, or none"
            )
        for example in found:
            where = f" of {example.name}" if example.name else ""
            if not example.caption:
                raise TrainError(f"{teaching.name}: no class caption{where}; write what it shows, without the trigger")
            if re.search(_word(teaching.trigger), example.caption, re.IGNORECASE):
                raise TrainError(
                    f"{teaching.name}: the class caption{where}, {example.caption!r}, holds the trigger "
                    f"{teaching.trigger!r}; take it out, class pictures show others, or choose another trigger"
                )
    return found


def make_trigger(name: str, count: int) -> str:
    """The trigger of a concept that so many words are learned for; no text encoder knows them."""
    return f"<{name}>" if count == 1 else " ".join(f"<{name}{i + 1}>" for i in range(count))
