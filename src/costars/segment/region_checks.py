"""Checks that every member of the cast has a region of its own that is large enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from costars.errors import SceneError
from costars.scene.scene import CastMember
from costars.segment.overlap import box_iou, mask_iou
from costars.types import Layout, Region, RegionError


@dataclass(frozen=True)
class RegionLimits:
    """What counts as a figure: smallest area (share of the picture), lowest score, largest overlap (IoU)."""

    smallest_area: float = 0.008
    lowest_score: float = 0.3
    most_overlap: float = 0.5


def check_regions(
    regions: Mapping[str, Region], phrases: Mapping[str, str], layout: Layout, *, limits: RegionLimits = RegionLimits()
) -> None:
    """Check the regions of a plan, whose masks and scene may have been edited.

    phrases {member: phrase} is what each member is now. Raises RegionError for a mask that is too small or
    overlaps another too much, SceneError for a member whose phrase is not its region's class.
    """
    for name, phrase in phrases.items():
        if regions[name].class_name != phrase:
            raise SceneError(
                f"cast.{name}: the plan's region is a {regions[name].class_name}, but {name} is now a {phrase}; "
                "plan the scene again"
            )
    found = tuple(regions.values())
    check_distinct(regions, limits, layout, found)
    check_visible(regions, limits, layout, found)


def check_distinct(
    chosen: Mapping[str, Region], limits: RegionLimits, layout: Layout, regions: tuple[Region, ...]
) -> None:
    """Raise RegionError if two members' masks overlap by more than limits.most_overlap."""
    for (a, one), (b, other) in combinations(chosen.items(), 2):
        overlap = mask_iou(one.mask, other.mask)
        if overlap > limits.most_overlap:
            raise RegionError(
                f"{a} and {b} would share one figure (mask IoU {overlap:.2f}, at most {limits.most_overlap}); "
                "try another seed or give them different masks",
                layout,
                regions,
            )


def check_visible(
    chosen: Mapping[str, Region], limits: RegionLimits, layout: Layout, regions: tuple[Region, ...]
) -> None:
    """Raise RegionError if a member's mask is smaller than limits.smallest_area."""
    for name, region in chosen.items():
        if region.area < limits.smallest_area:
            raise RegionError(
                f"{name}'s visible mask covers {region.area:.2%} of the picture, at least "
                f"{limits.smallest_area:.2%} is needed; try another seed or give a larger mask",
                layout,
                regions,
            )


def check_places(
    chosen: Mapping[str, Region], cast: Mapping[str, CastMember], layout: Layout, regions: tuple[Region, ...]
) -> None:
    """Raise RegionError if a member is on the wrong side or outside its box; a point is only a preference."""
    for name, region in chosen.items():
        left, _, right, _ = region.box
        match cast[name].where:
            case "left" | "right" as side:
                others = [r.box[0] + r.box[2] for n, r in chosen.items() if n != name] or [1.0]
                middle = left + right
                in_place = middle <= max(others) if side == "left" else middle >= min(others)
            case (a, b, c, d):
                in_place = box_iou((a, b, c, d), region.box) > 0
            case _:
                in_place = True
        if not in_place:
            raise RegionError(
                f"{name} ({region.class_name}) is at {[round(v, 2) for v in region.box]}, not at its place in the "
                f"scene ({cast[name].where}); try further seeds (--retries) or change cast.{name}.where",
                layout,
                regions,
            )


def describe_missing(
    missing: Sequence[str], classes: Mapping[str, str], usable: Sequence[Region], low_scores: Sequence[Region]
) -> str:
    """Describe which members are missing, which figures were found, and which of them score too low."""
    counts = Counter(r.class_name for r in usable)
    found = ", ".join(f"{n} {name}" for name, n in counts.items()) or "nobody"
    if low_scores:
        found += f" ({', '.join(f'a {r.class_name} scores only {r.score:.2f}' for r in low_scores)})"
    names = ", ".join(f"{name} ({classes[name]})" for name in missing)
    return (
        f"the layout does not show {names}; it shows {found} for a cast of {len(classes)}; "
        "try further seeds (--retries), a lower threshold (lowest_score), fewer members, "
        "or give a mask (cast.NAME.where=FILE.png)"
    )
