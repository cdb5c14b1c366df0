"""From folders of pictures to what is taught: every caption with its trigger."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from costars.errors import TrainError
from costars.train.config import Subject, TrainSpec, folder_of
from costars.train.data.captioning import class_caption, told
from costars.train.data.folder import MASK_SUFFIX
from costars.train.data.images import Example, ImageFolder, read_image_folder, read_mask
from costars.train.data.subject import TrainingSubject, make_trigger
from costars.train.recipes import Recipe

CaptionFunction = Callable[[Image.Image], str]


@dataclass(frozen=True)
class TrainingDataset:
    """Teachings, and a line for each picture that could not be used."""

    teachings: tuple[TrainingSubject, ...]
    skipped: tuple[str, ...]


def load_dataset(spec: TrainSpec, recipe: Recipe, base: Path | None, describe: CaptionFunction | None = None) -> TrainingDataset:
    """The spec's concepts with their pictures read; describe captions a picture that nobody did.

    A picture that nobody and nothing describes is "a <trigger> <class>" (DreamBooth, section 3.1), one of the
    class "a <class>". Raises TrainError for a concept without pictures.
    """
    teachings, skipped, known = [], dict[str, None](), [subject.name for subject in spec.concepts]
    for subject in spec.concepts:
        folder = _folder(subject, spec, base)
        material = read_image_folder(folder)
        skipped |= dict.fromkeys(material.skipped)
        if recipe.num_new_tokens and subject.trigger is not None:
            raise TrainError(
                f"{subject.name}: trigger {subject.trigger!r}, but {spec.recipe} learns words of its own; leave it out"
            )
        trigger = (
            make_trigger(subject.name, recipe.num_new_tokens) if recipe.num_new_tokens else subject.trigger or subject.name
        )
        if recipe.em is None:
            examples = tuple(_described(subject, trigger, material.examples, spec.add_trigger, describe))
        else:
            examples = tuple(_shared(subject, known, material.examples, folder))
        if not examples:
            raise TrainError(f"{subject.name}: no picture names {{{subject.name}}}; write it into a caption")
        others = _others(subject, base)
        skipped |= dict.fromkeys(others.skipped)
        told_as = (subject.name, subject.class_name, trigger)
        teachings.append(TrainingSubject(*told_as, examples, others.examples, subject.background))
    return TrainingDataset(tuple(teachings), tuple(skipped))


def _folder(subject: Subject, spec: TrainSpec, base: Path | None) -> Path:
    images = subject.images or spec.images
    if images is None:
        raise TrainError(f"{subject.name}: no pictures are named; give images, a folder of at least one")
    return folder_of(images, base)


def _others(subject: Subject, base: Path | None) -> ImageFolder:
    """The given pictures of the class; one without a caption is of the class and no more."""
    if subject.class_images is None:
        return ImageFolder((), ())
    found, caption = read_image_folder(folder_of(subject.class_images, base)), class_caption(subject.class_name)
    return replace(found, examples=tuple(replace(e, caption=e.caption or caption) for e in found.examples))


def _shared(subject: Subject, known: Sequence[str], examples: Sequence[Example], folder: Path) -> Iterator[Example]:
    """The pictures that show a concept beside others, with its own mask from PICTURE.NAME.mask.png if it is there.

    A caption says who is in a picture, as "{ana} and {bo}"; one without a caption shows everybody.
    """
    for example in examples:
        named = re.findall(r"{(.*?)}", example.caption or "")
        if example.caption is not None and (not named or set(named) - {*known}):
            raise TrainError(
                f"{example.name}: its caption {example.caption!r} does not say who of {', '.join(known)} is in it; "
                f"name them as {{{known[0]}}}, or leave the caption out where everybody is"
            )
        if example.caption is None or f"{{{subject.name}}}" in example.caption:
            path = (folder / example.name).with_suffix(f".{subject.name}{MASK_SUFFIX}")
            mask = read_mask(path, example.image, example.name) if path.exists() else None
            yield replace(example, mask=mask)


def _described(
    subject: Subject, trigger: str, examples: Sequence[Example], add_trigger: bool, describe: CaptionFunction | None
) -> Iterator[Example]:
    for example in examples:
        caption = example.caption
        if caption is None:
            caption = told(describe(example.image) if describe else "", subject.class_name, trigger)
        elif add_trigger:
            caption = told(caption, subject.class_name, trigger)
        yield replace(example, caption=caption)
