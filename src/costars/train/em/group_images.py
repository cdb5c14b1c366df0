"""Images that show several concepts, with the concepts and masks of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from costars.errors import TrainError
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject
from costars.types import MaskArray


@dataclass(frozen=True)
class GroupImage:
    """An image, the names of the concepts in it, and the masks that were given for some; a background is last."""

    file: str
    image: Image.Image
    names: tuple[str, ...] = ()
    given_masks: Mapping[str, MaskArray] = field(default_factory=dict)
    background: str = ""

    @property
    def foreground(self) -> tuple[str, ...]:
        """The names without the background."""
        return tuple(name for name in self.names if name != self.background)


def collect_group_images(subjects: Sequence[TrainingSubject]) -> tuple[GroupImage, ...]:
    """The images of all subjects, one for each file name; an example's mask is that of its subject.

    A background without a mask gets the pixels that no other mask covers. Raises TrainError for different images with
    the same name, and for two backgrounds in one image.
    """
    images: dict[str, GroupImage] = {}
    for subject in sorted(subjects, key=lambda each: each.background):
        for example in subject.examples:
            known = images.get(example.name, GroupImage(example.name, example.image))
            images[example.name] = _add_concept(known, subject, example)
    return tuple(_add_background_mask(image) for image in images.values())


def uncovered_mask(masks: Sequence[MaskArray], size: tuple[int, int]) -> MaskArray:
    """(h, w) mask of the pixels that no mask covers, for an image of size (w, h) px."""
    full = np.ones(size[::-1], dtype=np.float32)
    return np.minimum.reduce([full, *(1 - mask for mask in masks)])


def _add_concept(image: GroupImage, subject: TrainingSubject, example: Example) -> GroupImage:
    """The image with one more concept and its mask."""
    if image.image is not example.image and image.image.tobytes() != example.image.tobytes():
        raise TrainError(f"two different images have the name {example.name!r}; rename one of them")
    background = image.background
    if subject.background:
        background = background or subject.name
        if background != subject.name:
            raise TrainError(
                f"{example.name}: two backgrounds, {background} and {subject.name}; name one of them in its caption"
            )
    masks = image.given_masks if example.mask is None else {**image.given_masks, subject.name: example.mask}
    return replace(image, names=(*image.names, subject.name), given_masks=masks, background=background)


def _add_background_mask(image: GroupImage) -> GroupImage:
    given = image.given_masks
    if not image.background or image.background in given or not all(name in given for name in image.foreground):
        return image
    mask = uncovered_mask([given[name] for name in image.foreground], image.image.size)
    return replace(image, given_masks={**given, image.background: mask})
