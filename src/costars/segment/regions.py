"""Helpers shared by the segmenters that find figures by phrase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from costars.errors import SceneError
from costars.types import Region


def unique_phrases(class_names: Sequence[str]) -> list[str]:
    """Return each phrase once, in order; raises SceneError for a phrase without a letter or digit."""
    for phrase in class_names:
        if not any(letter.isalnum() for letter in phrase):
            raise SceneError(f"phrase {phrase!r} contains no word; name what to find, e.g. woman")
    return list(dict.fromkeys(class_names))


def assign_depths(regions: Sequence[Region]) -> list[Region]:
    """Set each region's depth: regions that reach lower are nearer; of two that reach equally low, the larger is."""
    order = sorted(range(len(regions)), key=lambda i: (-regions[i].box[3], -regions[i].area))
    return [replace(region, depth=order.index(i)) for i, region in enumerate(regions)]
