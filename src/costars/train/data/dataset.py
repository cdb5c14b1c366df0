"""Load the training subjects of a config: images, captions with triggers, masks and class images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from costars.errors import TrainError
from costars.scene.names import normalize_name
from costars.scene.prompt_syntax import unescape_brackets
from costars.train.config import SubjectConfig, TrainConfig
from costars.train.data.captioning import class_caption, insert_trigger
from costars.train.data.images import Example, ImageFolder, read_image_folder, read_mask
from costars.train.data.subject import TrainingSubject, make_trigger
from costars.train.recipe import Recipe

CaptionFunction = Callable[[Image.Image], str]


@dataclass(frozen=True)
class TrainingDataset:
    """The subjects of a config, and one line per image that was skipped, with the reason."""

    subjects: tuple[TrainingSubject, ...]
    skipped: tuple[str, ...]


def load_dataset(config: TrainConfig, recipe: Recipe, describe: CaptionFunction | None = None) -> TrainingDataset:
    """Read the training data of all concepts of a config whose paths are absolute.

    `describe` captions training images that have no caption. Without it their caption is "a <trigger> <class>"
    (DreamBooth, section 3.1); class images without a caption get "a <class>". Raises TrainError for a concept without
    images.
    """
    subjects, skipped = [], dict[str, None]()
    for concept in config.concepts:
        folder = _images_folder(concept, config)
        names = config.names if recipe.em is not None else ()
        images, class_images = read_image_folder(folder, names), _read_class_images(concept)
        skipped |= dict.fromkeys((*images.skipped, *class_images.skipped))
        trigger = _make_trigger(concept, config, recipe)
        if recipe.em is None:
            text = unescape_brackets(trigger)
            examples = tuple(_add_captions(concept, text, images.examples, config.add_trigger, describe))
        else:
            examples = tuple(_select_group_examples(concept, config.names, images))
        if not examples:
            raise TrainError(f"{concept.name}: no caption contains {{{concept.name}}}; add it to a caption")
        subjects.append(
            TrainingSubject(
                name=concept.name,
                class_name=concept.class_name,
                trigger=trigger,
                examples=examples,
                class_examples=class_images.examples,
                background=concept.background,
            )
        )
    return TrainingDataset(tuple(subjects), tuple(skipped))


def _images_folder(concept: SubjectConfig, config: TrainConfig) -> Path:
    images = concept.images or config.images
    if images is None:
        raise TrainError(f"{concept.name}: no images; give --images FOLDER (images: FOLDER in a file)")
    return Path(images)


def _make_trigger(concept: SubjectConfig, config: TrainConfig, recipe: Recipe) -> str:
    if not recipe.num_new_tokens:
        return concept.trigger or concept.name
    if concept.trigger is not None:
        raise TrainError(
            f"{concept.name}: trigger {concept.trigger!r} is not used, {config.recipe} trains new words; remove it"
        )
    return make_trigger(concept.name, recipe.num_new_tokens)


def _read_class_images(concept: SubjectConfig) -> ImageFolder:
    """The class images of a concept, with "a <class>" where a caption is missing; empty without class_images."""
    if concept.class_images is None:
        return ImageFolder((), ())
    found, caption = read_image_folder(Path(concept.class_images)), class_caption(concept.class_name)
    return replace(found, examples=tuple(replace(e, caption=e.caption or caption) for e in found.examples))


def _select_group_examples(concept: SubjectConfig, names: Sequence[str], images: ImageFolder) -> Iterator[Example]:
    """The images that show the concept, with its mask from IMAGE.NAME.mask.png if there is one.

    A caption names the concepts in the image, e.g. "{ana} and {bo}"; an image without a caption shows all of them.
    """
    for example in images.examples:
        named = [normalize_name(name) for name in re.findall(r"{(.*?)}", example.caption or "")]
        if example.caption is not None and (not named or set(named) - {*names}):
            raise TrainError(
                f"{example.name}: the caption {example.caption!r} must name the concepts in the image, of "
                f"{', '.join(names)}; write {{{names[0]}}}, or remove the caption if the image shows all of them"
            )
        if example.caption is None or concept.name in named:
            path = images.concept_masks[example.name].get(concept.name)
            mask = None if path is None else read_mask(path, example.image, example.name)
            yield replace(example, mask=mask)


def _add_captions(
    concept: SubjectConfig,
    trigger: str,
    examples: Sequence[Example],
    add_trigger: bool,
    describe: CaptionFunction | None,
) -> Iterator[Example]:
    for example in examples:
        caption = example.caption
        if caption is None:
            caption = insert_trigger(describe(example.image) if describe else "", concept.class_name, trigger)
        elif add_trigger:
            caption = insert_trigger(caption, concept.class_name, trigger)
        yield replace(example, caption=caption)
