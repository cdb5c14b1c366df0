"""Matches the regions that a segmenter found with the members of the cast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from costars.errors import SceneError
from costars.scene.scene import CastMember
from costars.segment.mask_files import has_mask_file, load_mask
from costars.segment.overlap import box_iou, mask_iou
from costars.segment.region_checks import RegionLimits, check_distinct, check_places, check_visible, describe_missing
from costars.types import Layout, MaskArray, Region, RegionError

_IMPOSSIBLE = 1e6


def match_cast(
    cast: Mapping[str, CastMember],
    classes: Mapping[str, str],
    regions: Sequence[Region],
    layout: Layout,
    *,
    limits: RegionLimits = RegionLimits(),
) -> dict[str, Region]:
    """Choose one region for each member: by class, then by `where`, then left to right in prompt order.

    classes {member: class} is in prompt order. The assignment is optimal (linear sum assignment), so no greedy
    choice takes the only figure of another member. A mask file given as `where` is used as the region itself.
    Raises RegionError, with the layout and all regions, if a member is missing or two members share a figure.
    """
    masks = {name: load_mask(m, layout.image.size) for name, m in cast.items() if has_mask_file(m)}
    usable = usable_regions(regions, masks, limits)
    chosen = _assign(cast, {name: c for name, c in classes.items() if name not in masks}, usable)
    missing = [name for name in classes if name not in chosen and name not in masks]
    found = tuple(regions)
    if missing:
        wanted = {classes[name] for name in missing}
        low_scores = [r for r in regions if r.score < limits.lowest_score and r.class_name in wanted]
        raise RegionError(describe_missing(missing, classes, usable, low_scores), layout, found)
    from_files = {name: Region(classes[name], mask, 1.0, 0) for name, mask in masks.items()}
    check_distinct({**chosen, **from_files}, limits, layout, found)
    check_places(chosen, cast, layout, found)
    chosen |= from_files
    visible = _subtract_front_masks({name: chosen[name] for name in classes}, cast)
    check_visible(visible, limits, layout, found)
    return visible


def usable_regions(regions: Sequence[Region], masks: Mapping[str, MaskArray], limits: RegionLimits) -> list[Region]:
    """Return the regions within the limits, without duplicates and figures that a mask file covers."""
    usable = [r for r in regions if r.area >= limits.smallest_area and r.score >= limits.lowest_score]
    usable = _remove_duplicates(usable, limits.most_overlap)
    return [r for r in usable if all(mask_iou(r.mask, mask) <= limits.most_overlap for mask in masks.values())]


def _remove_duplicates(regions: Sequence[Region], most_overlap: float) -> list[Region]:
    """Of two regions that overlap by more than most_overlap (IoU), keep the better scored, or else the first."""
    kept: list[Region] = []
    for region in sorted(regions, key=lambda r: -r.score):
        if all(mask_iou(region.mask, other.mask) <= most_overlap for other in kept):
            kept.append(region)
    return sorted(kept, key=lambda r: r.box[0])


def _assign(cast: Mapping[str, CastMember], classes: Mapping[str, str], regions: Sequence[Region]) -> dict[str, Region]:
    """Assign regions to members with the least total cost; members without a possible region are left out."""
    names = list(classes)
    cost = np.full((len(names), max(len(regions), 1)), _IMPOSSIBLE)
    for i, name in enumerate(names):
        peers = [other for other in names if classes[other] == classes[name]]
        for j, region in enumerate(regions):
            if region.class_name == classes[name]:
                cost[i, j] = _place_cost(cast[name], region) + _order_cost(peers, name, region)
    rows, columns = linear_sum_assignment(cost)
    return {names[i]: regions[j] for i, j in zip(rows, columns, strict=True) if cost[i, j] < _IMPOSSIBLE}


def _place_cost(member: CastMember, region: Region) -> float:
    """Return 10 times the distance from the member's `where`, plus a small cost for a low score."""
    left, top, right, bottom = region.box
    x, y = (left + right) / 2, (top + bottom) / 2
    score_cost = 0.2 * (1 - region.score)
    match member.where:
        case None:
            return score_cost
        case "left":
            return 10 * x + score_cost
        case "right":
            return 10 * (1 - x) + score_cost
        case (px, py):
            return 10 * float(np.hypot(px - x, py - y)) + score_cost
        case (a, b, c, d):
            return 10 * (1 - box_iou((a, b, c, d), region.box)) + score_cost
        case other:
            raise SceneError(f"where: {other!r} is not left, right, a point, a box or a .png mask file")


def _order_cost(peers: Sequence[str], name: str, region: Region) -> float:
    """Prefer, slightly, prompt order from left to right among the members of one class."""
    if len(peers) == 1:
        return 0.0
    expected = peers.index(name) / len(peers)
    left, _, right, _ = region.box
    return 0.5 * ((left + right) / 2 - expected) ** 2


def order_by_depth(regions: Mapping[str, Region], cast: Mapping[str, CastMember]) -> list[str]:
    """Return names from front to back: the segmenter's order, with each `depth` of the scene put at its place."""
    given = {name: depth for name in regions if (depth := cast[name].depth) is not None}
    order = sorted((name for name in regions if name not in given), key=lambda name: regions[name].depth)
    for name in sorted(given, key=lambda name: given[name]):
        order.insert(min(given[name], len(order)), name)
    return order


def _subtract_front_masks(chosen: Mapping[str, Region], cast: Mapping[str, CastMember]) -> dict[str, Region]:
    """Number the depths from front to back and subtract nearer masks, so that masks do not overlap."""
    visible: dict[str, Region] = {}
    covered: MaskArray | None = None
    for depth, name in enumerate(order_by_depth(chosen, cast)):
        region = chosen[name]
        mask = region.mask if covered is None else np.minimum(region.mask, 1 - covered)
        covered = mask if covered is None else np.maximum(covered, mask)
        visible[name] = replace(region, mask=mask.astype(np.float32), depth=depth)
    return {name: visible[name] for name in chosen}
