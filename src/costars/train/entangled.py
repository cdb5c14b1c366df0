"""Pictures that show several concepts: who is in each, and what such a picture is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from costars.errors import TrainError
from costars.train.lessons import Teaching
from costars.types import MaskArray


@dataclass(frozen=True)
class Entangled:
    """A picture with the names of the concepts in it, and where they are if somebody said."""

    image: Image.Image
    names: tuple[str, ...]
    given: Mapping[str, MaskArray]


def entangled(teachings: Sequence[Teaching]) -> tuple[Entangled, ...]:
    """The pictures that the teachings share, by file; a mask is of the concept whose teaching has it."""
    names: dict[str, list[str]] = {}
    images, given = dict[str, Image.Image](), dict[str, dict[str, MaskArray]]()
    for teaching in teachings:
        for example in teaching.examples:
            known = images.setdefault(example.name, example.image)
            if known is not example.image and known.tobytes() != example.image.tobytes():
                raise TrainError(
                    f"{example.name}: two pictures are called so; rename one, they are told by their names"
                )
            names.setdefault(example.name, []).append(teaching.name)
            if example.mask is not None:
                given.setdefault(example.name, {})[teaching.name] = example.mask
    return tuple(Entangled(images[file], tuple(names[file]), given.get(file, {})) for file in images)


def caption_of(names: Sequence[str], called: Mapping[str, str], template: str) -> str:
    """A caption that names these concepts and nothing else."""
    each = [f"a {called[name]}" for name in names]
    return template.format(each[0] if len(each) == 1 else f"{', '.join(each[:-1])} and {each[-1]}")
