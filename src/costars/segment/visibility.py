"""Judges from the figures of a finished picture who is visible, who looks like something else, and who is too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from costars.segment.overlap import mask_iou
from costars.types import MaskArray, Region

# Chosen on pictures of the built-in world whose seeds are not among the reported ones (docs/results.md, Visibility).
PRESENT_IOU = 0.3  # least IoU of a figure with a member's region; 0.2 to 0.5 judge alike
CERTAIN_CLASS = 0.5  # least probability of a class of another kind; 0.4 to 0.6 judge alike
INSIDE = 0.5  # share of a figure that lies in the regions of the cast, from which on it is no extra figure


@dataclass(frozen=True)
class Visibility:
    """lost are members without a figure of their class in their place, seen_as {member: class of the figure there}."""

    lost: tuple[str, ...] = ()
    seen_as: Mapping[str, str] = field(default_factory=dict)


def judge_visibility(regions: Mapping[str, Region], figures: Sequence[Region], kinds: Mapping[str, str]) -> Visibility:
    """Compare the plan's regions {member: region} with the figures of the picture.

    kinds {class: kind} are the figures' classes; only a figure of another kind counts as something else.
    """
    lost, seen_as = [], {}
    for name, region in regions.items():
        figure = max(figures, key=lambda f: mask_iou(f.mask, region.mask), default=None)
        if figure is None or mask_iou(figure.mask, region.mask) < PRESENT_IOU:
            lost.append(name)
        elif _is_other_kind(figure, region.class_name, kinds):
            lost.append(name)
            seen_as[name] = figure.class_name
    return Visibility(tuple(lost), seen_as)


def _is_other_kind(figure: Region, class_name: str, kinds: Mapping[str, str]) -> bool:
    """Whether a figure is certainly of another kind than a class; False for classes without a kind."""
    if class_name not in kinds or figure.class_name not in kinds:
        return False
    return kinds[figure.class_name] != kinds[class_name] and figure.score >= CERTAIN_CLASS


def find_extra_figures(regions: Mapping[str, Region], figures: Iterable[Region]) -> list[Region]:
    """Figures that are not in a region of the cast."""
    cast: MaskArray | None = None
    for region in regions.values():
        cast = region.mask if cast is None else np.maximum(cast, region.mask)
    return [figure for figure in figures if cast is None or _share_inside(figure.mask, cast) < INSIDE]


def _share_inside(mask: MaskArray, cast: MaskArray) -> float:
    area = float(mask.sum())
    return float(np.minimum(mask, cast).sum()) / area if area else 1.0


def describe_extra_figures(what: str, classes: Sequence[str], num_members: int) -> tuple[str, ...]:
    """A note on the figures of a layout or picture that are not in the cast; none if there are none."""
    if not classes:
        return ()
    found = ", ".join(f"{n} {name}" for name, n in Counter(classes).items())
    verb = "is" if len(classes) == 1 else "are"
    return (
        f"the {what} shows more figures than the cast of {num_members}: {found}, which {verb} drawn without an "
        "identity; if the prompt asks for no stranger, try another seed, or the model's own size",
    )
