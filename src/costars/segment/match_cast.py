"""Which region is which member of the cast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment

from costars.errors import RegionError, SceneError, nearest
from costars.images.masks import grey_levels, same_shape
from costars.scene.scene import CastMember
from costars.types import Layout, MaskArray, Region

_NEVER = 1e6


SIDES = ("left", "right")
STILL_THERE = 0.3  # IoU of a figure's masks in layout and picture; those that are there reach 0.8 on average


@dataclass(frozen=True)
class Limits:
    """What counts as a figure: least area (share of the picture), least score, most overlap (IoU)."""

    smallest_area: float = 0.008
    lowest_score: float = 0.3
    most_overlap: float = 0.5


def assign(
    cast: Mapping[str, CastMember],
    classes: Mapping[str, str],
    regions: Sequence[Region],
    layout: Layout,
    *,
    limits: Limits = Limits(),
    base: Path | None = None,
) -> dict[str, Region]:
    """One region for each member, by class, then by `where`, then left to right in prompt order.

    classes {member: class} is in prompt order. It is one optimal matching, so no greedy choice can
    leave a member without a figure that was there. A mask file given as `where` is the member's
    region itself. Raises RegionError, with the layout and all regions in it, if someone is missing
    or two members would share a figure.
    """
    usable = [r for r in regions if r.area >= limits.smallest_area and r.score >= limits.lowest_score]
    usable = _without_doubles(usable, limits.most_overlap)
    drawn = {n: _mask_file(m, layout, base) for n, m in cast.items() if _is_file(m)}
    taken = list(drawn.values())
    usable = [r for r in usable if all(mask_iou(r.mask, mask) <= limits.most_overlap for mask in taken)]
    sought = [name for name in classes if name not in drawn]
    cost = np.full((len(sought), max(len(usable), 1)), _NEVER)
    for i, name in enumerate(sought):
        for j, region in enumerate(usable):
            if region.class_name == classes[name]:
                cost[i, j] = _cost(cast[name], region) + _order_cost(sought, classes, usable, i, j)
    rows, columns = linear_sum_assignment(cost)
    chosen = {sought[i]: usable[j] for i, j in zip(rows, columns, strict=True) if cost[i, j] < _NEVER}
    missing = [name for name in sought if name not in chosen]
    if missing:
        faint = [r for r in regions if r.score < limits.lowest_score and r.class_name in {classes[n] for n in missing}]
        raise RegionError(_missing(missing, classes, usable, faint), layout, tuple(regions))
    for name, mask in drawn.items():
        chosen[name] = Region(classes[name], mask, 1.0, 0)
    _check_apart(chosen, limits, layout, tuple(regions))
    _check_places({n: r for n, r in chosen.items() if n not in drawn}, cast, layout, tuple(regions))
    seen = _by_depth({name: chosen[name] for name in classes}, cast)
    _check_visible(seen, limits, layout, tuple(regions))
    return seen


def check_regions(
    regions: Mapping[str, Region], phrases: Mapping[str, str], layout: Layout, *, limits: Limits = Limits()
) -> None:
    """Hold the regions of a plan, whose masks and scene may have been edited, to what `assign` gives.

    phrases {member: what its figure was found as}. Raises RegionError for a mask that shows nobody or somebody
    else's figure, SceneError for a member that is now something else than the figure drawn for it.
    """
    for name, phrase in phrases.items():
        if regions[name].class_name != phrase:
            raise SceneError(
                f"cast.{name}: the layout has a {regions[name].class_name} there, {name} is now a {phrase}; "
                "plan the scene again"
            )
    found = tuple(regions.values())
    _check_apart(regions, limits, layout, found)
    _check_visible(regions, limits, layout, found)


def _cost(member: CastMember, region: Region) -> float:
    """How ill a region fits where a member should be, 0 to 1; a weak score costs a little."""
    left, top, right, bottom = region.box
    x, y = (left + right) / 2, (top + bottom) / 2
    doubt = 0.2 * (1 - region.score)
    match member.where:
        case None:
            return doubt
        case "left":
            return 10 * x + doubt
        case "right":
            return 10 * (1 - x) + doubt
        case (px, py):
            return 10 * float(np.hypot(px - x, py - y)) + doubt
        case (a, b, c, d):
            return 10 * (1 - _box_iou((a, b, c, d), region.box)) + doubt
        case other:
            raise SceneError(f"where: {other!r} is not left, right, a point, a box or a .png mask file")


def _order_cost(sought: Sequence[str], classes: Mapping[str, str], regions: Sequence[Region], i: int, j: int) -> float:
    """A small preference for prompt order from left to right among members of one class."""
    peers = [name for name in sought if classes[name] == classes[sought[i]]]
    if len(peers) == 1:
        return 0.0
    mine = peers.index(sought[i]) / len(peers)
    left, _, right, _ = regions[j].box
    return 0.5 * ((left + right) / 2 - mine) ** 2


def _without_doubles(regions: Sequence[Region], most_overlap: float) -> list[Region]:
    """Of two regions that are one figure the better scored one stays, of equals the first."""
    kept: list[Region] = []
    for region in sorted(regions, key=lambda r: -r.score):
        if all(mask_iou(region.mask, other.mask) <= most_overlap for other in kept):
            kept.append(region)
    return sorted(kept, key=lambda r: r.box[0])


def _check_apart(chosen: Mapping[str, Region], limits: Limits, layout: Layout, regions: tuple[Region, ...]) -> None:
    for (a, one), (b, other) in combinations(chosen.items(), 2):
        overlap = mask_iou(one.mask, other.mask)
        if overlap > limits.most_overlap:
            raise RegionError(
                f"{a} and {b} would share one figure (their masks overlap by {overlap:.2f}, at most "
                f"{limits.most_overlap}); try another seed or give them different masks",
                layout,
                regions,
            )


def _check_visible(seen: Mapping[str, Region], limits: Limits, layout: Layout, regions: tuple[Region, ...]) -> None:
    for name, region in seen.items():
        if region.area < limits.smallest_area:
            raise RegionError(
                f"{name}'s visible mask covers {region.area:.2%} of the picture, want at least "
                f"{limits.smallest_area:.2%}; try another seed or give a larger mask",
                layout,
                regions,
            )


def _missing(
    missing: Sequence[str], classes: Mapping[str, str], regions: Sequence[Region], faint: Sequence[Region]
) -> str:
    """Who is missing, who is seen, and who of the missing ones' classes scored too low to count."""
    found = Counter(r.class_name for r in regions)
    seen = ", ".join(f"{n} {name}" for name, n in found.items()) or "nobody"
    if faint:
        seen += f" ({', '.join(f'a {r.class_name} with a score of {r.score:.2f}' for r in faint)} does not count)"
    who = ", ".join(f"{name} ({classes[name]})" for name in missing)
    return (
        f"the layout does not show {who}; it shows {seen} for a cast of {len(classes)}; "
        "try another seed (--retries 5), a lower threshold (lowest_score), fewer members, "
        "or give a mask (cast.NAME.where=FILE.png)"
    )


def depth_order(regions: Mapping[str, Region], cast: Mapping[str, CastMember]) -> list[str]:
    """Names from front to back: as segmented, then each member with a depth moved to that place."""
    given = {name: depth for name in regions if (depth := cast[name].depth) is not None}
    order = sorted((name for name in regions if name not in given), key=lambda name: regions[name].depth)
    for name in sorted(given, key=lambda name: given[name]):
        order.insert(min(given[name], len(order)), name)
    return order


def _by_depth(chosen: dict[str, Region], cast: Mapping[str, CastMember]) -> dict[str, Region]:
    """Depths from the scene where given, from the segmenter elsewhere; then masks without overlap."""
    out: dict[str, Region] = {}
    covered: MaskArray | None = None
    for depth, name in enumerate(depth_order(chosen, cast)):
        region = chosen[name]
        mask = region.mask if covered is None else np.minimum(region.mask, 1 - covered)
        covered = mask if covered is None else np.maximum(covered, mask)
        out[name] = replace(region, mask=mask.astype(np.float32), depth=depth)
    return {name: out[name] for name in chosen}


def _check_places(
    chosen: Mapping[str, Region], cast: Mapping[str, CastMember], layout: Layout, regions: tuple[Region, ...]
) -> None:
    """A member on the wrong side or outside its box is an error; a point only says which figure is nearest."""
    for name, region in chosen.items():
        left, _, right, _ = region.box
        match cast[name].where:
            case "left" | "right" as side:
                others = [r.box[0] + r.box[2] for n, r in chosen.items() if n != name] or [1.0]
                middle = left + right
                met = middle <= max(others) if side == "left" else middle >= min(others)
            case (a, b, c, d):
                met = _box_iou((a, b, c, d), region.box) > 0
            case _:
                met = True
        if not met:
            raise RegionError(
                f"{name} ({region.class_name}) does not stand where the scene says ({cast[name].where}) but at "
                f"{[round(v, 2) for v in region.box]}; try another seed (--retries 5) or change cast.{name}.where",
                layout,
                regions,
            )


def _is_file(member: CastMember) -> bool:
    return isinstance(member.where, str) and member.where not in SIDES


def _mask_file(member: CastMember, layout: Layout, base: Path | None) -> MaskArray:
    with Image.open(mask_path(member, base, layout.image.size)) as image:
        mask = Image.fromarray(grey_levels(image)).resize(layout.image.size, Image.Resampling.BILINEAR)
    return (np.asarray(mask) >= 0.5).astype(np.float32)


def mask_path(member: CastMember, base: Path | None, size_px: tuple[int, int]) -> Path:
    """The mask file that `where` names; raises SceneError if it is no picture of the shape of the one to be drawn."""
    path = (base or Path()) / str(member.where)
    try:
        with Image.open(path) as image:
            grey_levels(image)
    except (OSError, SyntaxError) as error:
        what = "is not there" if isinstance(error, FileNotFoundError) else "is no picture"
        hint = "" if path.suffix else f"; {nearest(str(member.where), SIDES)}"
        raise SceneError(
            f"where: {member.where!r} is not left, right, a point, a box, nor a mask file ({path} {what}){hint}"
        ) from None
    except ValueError as error:
        raise SceneError(f"where: {member.where!r} {error}; want white on black") from None
    if not same_shape(image.size, size_px):
        width, height = image.size
        raise SceneError(
            f"where: {member.where!r} is {width} x {height} px, the picture {size_px[0]} x {size_px[1]}; "
            "give a mask of the picture's shape"
        )
    return path


def check_where(cast: Mapping[str, CastMember], base: Path | None, size_px: tuple[int, int]) -> None:
    """Raises SceneError now for a mask file that could not be used on a picture of (width, height) later."""
    for member in cast.values():
        if _is_file(member):
            mask_path(member, base, size_px)


def lost_members(regions: Mapping[str, Region], drawn: Sequence[Region]) -> tuple[str, ...]:
    """The members of the layout where nobody of their class stands in the picture; drawn are its figures."""
    return tuple(
        name
        for name, region in regions.items()
        if not any(d.class_name == region.class_name and mask_iou(d.mask, region.mask) >= STILL_THERE for d in drawn)
    )


def mask_iou(a: MaskArray, b: MaskArray) -> float:
    """Intersection over union of two masks."""
    union = float(np.maximum(a, b).sum())
    return float(np.minimum(a, b).sum()) / union if union else 0.0


def _box_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return inside / (areas - inside) if areas > inside else 0.0
