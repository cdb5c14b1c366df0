"""From folders of pictures to what is taught: every caption with its trigger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from costars.errors import TrainError
from costars.train.captions import told
from costars.train.data import Example, read_folder
from costars.train.lessons import Teaching, new_words
from costars.train.recipes import Recipe
from costars.train.spec import Subject, TrainSpec, folder_of

Describe = Callable[[Image.Image], str]


@dataclass(frozen=True)
class Prepared:
    """Teachings, and a line for each picture that could not be used."""

    teachings: tuple[Teaching, ...]
    skipped: tuple[str, ...]


def prepared(spec: TrainSpec, recipe: Recipe, base: Path | None, describe: Describe | None = None) -> Prepared:
    """The spec's concepts with their pictures read; describe captions a picture that nobody did.

    A picture that nobody and nothing describes is "a <trigger> <class>" (DreamBooth, section 3.1).
    Raises TrainError for a concept without pictures.
    """
    teachings, skipped = [], list[str]()
    for subject in spec.concepts:
        if subject.images is None:
            raise TrainError(f"{subject.name}: no pictures are named; give images, a folder of at least one")
        material = read_folder(folder_of(subject.images, base))
        skipped += material.skipped
        trigger = new_words(subject.name, recipe.words) if recipe.words else subject.trigger or subject.name
        examples = _described(subject, trigger, material.examples, spec.add_trigger, describe)
        teachings.append(Teaching(subject.name, subject.class_name, trigger, tuple(examples)))
    return Prepared(tuple(teachings), tuple(skipped))


def _described(
    subject: Subject, trigger: str, examples: Sequence[Example], add_trigger: bool, describe: Describe | None
) -> Iterator[Example]:
    for example in examples:
        caption = example.caption
        if caption is None:
            caption = told(describe(example.image) if describe else "", subject.class_name, trigger)
        elif add_trigger:
            caption = told(caption, subject.class_name, trigger)
        yield replace(example, caption=caption)
