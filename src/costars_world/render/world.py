"""Renders pictures of the built-in world from a seed, with exact masks, depth order and identities.

A picture is 128 x 128 px. Figures are painted from back to front, so a figure's visible mask is its full mask
minus the masks of all figures painted later.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from costars_world.render.backgrounds import PLACES, paint_background
from costars_world.render.brush import SUPERSAMPLE, Brush, make_mask
from costars_world.render.figures import draw_figure
from costars_world.render.identity import Identity, describe_attributes, sample_identity

SIZE_PX = 128
MAX_FIGURES = 5

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Figure:
    """One figure of a picture; masks are (128, 128) bool, depth 0 is in front, x is the position of the feet in px."""

    identity: Identity
    full_mask: Mask
    visible_mask: Mask
    depth: int
    x: float


@dataclass(frozen=True)
class WorldPicture:
    """A picture with its ground truth; figures are in the order of the caption."""

    image: Image.Image
    caption: str
    place: str
    figures: tuple[Figure, ...]

    def find_figure(self, identity: Identity) -> Figure:
        """Return the figure of this identity."""
        return next(figure for figure in self.figures if figure.identity == identity)


@dataclass(frozen=True)
class Spot:
    """Position of a figure: feet at (x, y) px, scale, and whether it is mirrored."""

    x: float
    y: float
    scale: float
    mirror: bool = False


# Range of figure scales, and sampling weight, by number of figures.
_SCALE_RANGES = {1: (1.1, 1.32), 2: (0.98, 1.14), 3: (0.8, 0.92), 4: (0.68, 0.78), 5: (0.6, 0.68)}
_COUNT_WEIGHTS = {1: 0.24, 2: 0.44, 3: 0.15, 4: 0.09, 5: 0.08}


def sample_picture(
    seed: int,
    *,
    count: int | None = None,
    cast: Sequence[Identity] | None = None,
    place: str | None = None,
    detail: float | None = None,
    scale_range: tuple[float, float] | None = None,
) -> WorldPicture:
    """Render the picture of a seed; arguments that are None are sampled.

    count is the number of figures, cast their identities, detail the probability that the caption names an
    attribute. scale_range is the smallest and largest scale of a figure; None chooses it by the number of figures.
    """
    rng = random.Random(f"picture {seed}")
    if cast is None:
        if count is None:
            count = rng.choices(list(_COUNT_WEIGHTS), list(_COUNT_WEIGHTS.values()))[0]
        cast = [sample_identity(rng) for _ in range(count)]
    place = rng.choice(list(PLACES)) if place is None else place
    relation = _sample_relation(rng, len(cast))
    spots, depths = _arrange_figures(rng, len(cast), relation, scale_range or _SCALE_RANGES[len(cast)])
    image, masks = draw_scene(rng, cast, place, spots, depths)
    covered = np.zeros((SIZE_PX, SIZE_PX), dtype=bool)
    visible: dict[int, Mask] = {}
    for i in sorted(range(len(cast)), key=lambda i: depths[i]):
        visible[i] = masks[i] & ~covered
        covered |= masks[i]
    figures = tuple(Figure(identity, masks[i], visible[i], depths[i], spots[i].x) for i, identity in enumerate(cast))
    if detail is None:
        # Less detail for many figures, so that the caption fits 77 tokens.
        detail = rng.choice((0.0, 0.0, 0.2, 0.45, 0.8)) * (1.0 if len(cast) <= 3 else 0.4)
    return WorldPicture(image, _write_caption(rng, cast, place, relation, detail), place, figures)


def draw_scene(
    rng: random.Random, cast: Sequence[Identity], place: str, spots: Sequence[Spot], depths: Sequence[int]
) -> tuple[Image.Image, list[Mask]]:
    """Paint a place, then its figures from back to front; return the image and the full masks."""
    canvas = Image.new("RGB", (SIZE_PX * SUPERSAMPLE, SIZE_PX * SUPERSAMPLE))
    ink = ImageDraw.Draw(canvas)
    paint_background(Brush(ink, None), place, rng, SIZE_PX)
    masks: dict[int, Mask] = {}
    light = PLACES[place].light
    for i in sorted(range(len(cast)), key=lambda i: -depths[i]):
        spot = spots[i]
        mask = make_mask(SIZE_PX)
        brush = Brush(ink, ImageDraw.Draw(mask), spot.x, spot.y, spot.scale, spot.mirror, tint=light, line_px=1.25)
        _draw_shadow(canvas, spot)
        draw_figure(brush, cast[i], random.Random(rng.random()))
        masks[i] = np.asarray(mask.reduce(SUPERSAMPLE)) >= 128
    return canvas.reduce(SUPERSAMPLE), [masks[i] for i in range(len(cast))]


def _draw_shadow(canvas: Image.Image, spot: Spot) -> None:
    dx, dy = 17 * spot.scale * SUPERSAMPLE, 4 * spot.scale * SUPERSAMPLE
    x, y = spot.x * SUPERSAMPLE, spot.y * SUPERSAMPLE
    box = (round(x - dx), round(y - dy), round(x + dx), round(y + dy))
    region = canvas.crop(box)
    mask = Image.new("L", region.size, 0)
    ImageDraw.Draw(mask).ellipse((0, 0, region.width - 1, region.height - 1), fill=70)
    region.paste((30, 26, 50), (0, 0), mask)
    canvas.paste(region, box)


def _sample_relation(rng: random.Random, count: int) -> str:
    if count == 1:
        return "alone"
    if count == 2:
        return rng.choice(("front", "front", "behind", "left", "right", "next", "and"))
    return rng.choice(("row", "row", "front"))


def _arrange_figures(
    rng: random.Random, count: int, relation: str, scale_range: tuple[float, float]
) -> tuple[list[Spot], list[int]]:
    """Return spots and depths; figure 0 is the one that the caption names first."""
    low, high = scale_range
    if count == 1:
        return [Spot(rng.uniform(42, 86), rng.uniform(113, 122), rng.uniform(low, high), rng.random() < 0.5)], [0]
    if count == 2:
        overlap = relation in ("front", "behind") or (relation == "and" and rng.random() < 0.3)
        gap = rng.uniform(21, 31) if overlap else rng.uniform(46, 60)
        middle = rng.uniform(58, 70) if overlap else rng.uniform(62, 66)
        xs = [middle - gap / 2, middle + gap / 2]
    else:
        left = {3: 24, 4: 19, 5: 15}[count] + rng.uniform(-4, 4)
        step = (SIZE_PX - 2 * left) / (count - 1)
        xs = [left + i * step + rng.uniform(-3, 3) for i in range(count)]
    order = list(range(count))  # order[i] is the index in xs of the figure named i-th
    if relation in ("front", "behind", "and", "next") and count == 2 and rng.random() < 0.5:
        order.reverse()
    if relation == "right":
        order.reverse()
    depths = rng.sample(range(count), count)
    if relation == "front" and count > 2:
        xs[0] += (xs[1] - xs[0]) * 0.22
        depths = [0, 1, *(d + 2 for d in rng.sample(range(count - 2), count - 2))]
    elif relation in ("front", "behind"):
        depths = [0, 1] if relation == "front" else [1, 0]
    spots = []
    for i in range(count):
        depth = depths[i] / max(1, count - 1)
        scale = rng.uniform(low, high) * (1.04 - 0.1 * depth)
        foot = 122 - 11 * depth - rng.uniform(0, 3) - (6 if count > 3 else 0)
        spots.append(Spot(xs[order[i]], foot, scale, rng.random() < 0.5))
    return spots, depths


def _write_caption(rng: random.Random, cast: Sequence[Identity], place: str, relation: str, detail: float) -> str:
    nouns = [_describe_figure(rng, identity, detail) for identity in cast]
    joined = {
        "front": " in front of ",
        "behind": " behind ",
        "left": " to the left of ",
        "right": " to the right of ",
        "next": " next to ",
        "and": " and ",
    }.get(relation, " and ")
    if len(nouns) == 1:
        subject = nouns[0]
    elif len(nouns) == 2:
        subject = joined.join(nouns)
    elif relation == "front":
        subject = f"{nouns[0]} in front of {', '.join(nouns[1:-1])} and {nouns[-1]}"
    else:
        subject = f"{', '.join(nouns[:-1])} and {nouns[-1]}"
    return f"{subject} {PLACES[place].phrase}"


def _describe_figure(rng: random.Random, identity: Identity, detail: float) -> str:
    named = [p for p in describe_attributes(identity) if rng.random() < detail]
    return f"a {identity.class_name}" + (f" with {' and '.join(named)}" if named else "")
