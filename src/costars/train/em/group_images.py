"""Pictures that show several concepts: who is in each, and what such a picture is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from costars.errors import TrainError
from costars.train.data.subject import TrainingSubject
from costars.types import MaskArray


@dataclass(frozen=True)
class GroupImage:
    """A picture with the names of the concepts in it, and where they are if somebody said; a background is last."""

    file: str
    image: Image.Image
    names: tuple[str, ...]
    given: Mapping[str, MaskArray]
    background: str = ""

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of all but the background."""
        return tuple(name for name in self.names if name != self.background)


def collect_group_images(teachings: Sequence[TrainingSubject]) -> tuple[GroupImage, ...]:
    """The pictures that the teachings share, by file; a mask is of the concept whose teaching has it.

    A background that has no mask is what is around the others' masks. Raises TrainError for two pictures of one
    name, and for two backgrounds in one picture.
    """
    names: dict[str, list[str]] = {}
    images, given, around = dict[str, Image.Image](), dict[str, dict[str, MaskArray]](), dict[str, str]()
    for teaching in sorted(teachings, key=lambda each: each.background):
        for example in teaching.examples:
            known = images.setdefault(example.name, example.image)
            if known is not example.image and known.tobytes() != example.image.tobytes():
                raise TrainError(
                    f"{example.name}: two pictures are called so; rename one, they are told by their names"
                )
            names.setdefault(example.name, []).append(teaching.name)
            if teaching.background and around.setdefault(example.name, teaching.name) != teaching.name:
                both = f"{around[example.name]} and {teaching.name}"
                raise TrainError(f"{example.name}: two backgrounds, {both}; say in a caption which it shows")
            if example.mask is not None:
                given.setdefault(example.name, {})[teaching.name] = example.mask
    found = (GroupImage(f, images[f], tuple(names[f]), given.get(f, {}), around.get(f, "")) for f in images)
    return tuple(_with_surroundings(picture) for picture in found)


def _with_surroundings(picture: GroupImage) -> GroupImage:
    given = picture.given
    if not picture.background or picture.background in given or not all(name in given for name in picture.figures):
        return picture
    own = uncovered_mask([given[name] for name in picture.figures], picture.image.size)
    return replace(picture, given={**given, picture.background: own})


def uncovered_mask(masks: Sequence[MaskArray], size: tuple[int, int]) -> MaskArray:
    """(h, w) what no mask covers of a picture of size (w, h) px."""
    nobody = np.ones(size[::-1], dtype=np.float32)
    return np.minimum.reduce([nobody, *(1 - mask for mask in masks)])


def make_caption(names: Sequence[str], called: Mapping[str, str], template: str, background: str = "") -> str:
    """A caption that names these concepts and nothing else, a background as what the others are in."""
    each = [f"a {called[name]}" for name in names if name != background]
    said = each[-1] if len(each) == 1 else f"{', '.join(each[:-1])} and {each[-1]}" if each else ""
    if background in names:
        said = f"{said} in a {called[background]}" if said else f"a {called[background]}"
    return template.format(said)
