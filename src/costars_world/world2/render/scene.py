"""World 2: cartoon scenes drawn from a seed, with the truth about them.

Figures are in the order in which the caption names them. Sizes and points are picture pixels (width,
height) and (x, y); boxes are (left, top, right, bottom) fractions; masks are bool (height, width).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from costars_world.world2.render.brush import SUPERSAMPLE, Brush
from costars_world.world2.render.captions import vocabulary, write_caption
from costars_world.world2.render.cast import SHAPES, sample_cast
from costars_world.world2.render.figures import draw_figure, keypoints_of
from costars_world.world2.render.identity import ATTRIBUTES, CLASSES, Identity, sample_identity
from costars_world.world2.render.layout import RELATIONS, Layout, arrange, possible_relations
from costars_world.world2.render.places import PLACES, paint_place
from costars_world.world2.render.skeleton import Keypoints, Pose
from costars_world.world2.render.styles import HELD_OUT_STYLES, STYLES, apply_style, sample_style

__all__ = [
    "ATTRIBUTES",
    "CLASSES",
    "HELD_OUT_STYLES",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "STYLES",
    "Identity",
    "RenderedFigure",
    "RenderedScene",
    "sample_identity",
    "sample_scene",
    "vocabulary",
]

Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class RenderedFigure:
    """One figure of a scene; depth 0 is front-most, touches are indices of the figures it is in contact with.

    visible_mask and full_mask are (height, width) bool, or (0, 0) where the scene was drawn without truth;
    box bounds the full mask; keypoints are named from the figure's own left and right, and those outside the
    picture are left out.
    """

    identity: Identity
    action: str
    visible_mask: Mask
    full_mask: Mask
    depth: int
    box: Box
    keypoints: Keypoints
    touches: tuple[int, ...]


@dataclass(frozen=True)
class RenderedScene:
    """A picture and the truth about it.

    ids is (height, width) uint8: 0 is the background, i + 1 is figure i. horizon_px is where the ground
    starts, ground_px where each figure stands or would land, in px from the top.
    """

    image: Image.Image
    caption: str
    place: str
    style: str
    relation: str
    figures: tuple[RenderedFigure, ...]
    ids: NDArray[np.uint8]
    horizon_px: float
    ground_px: tuple[float, ...]


def sample_scene(
    seed: int,
    *,
    size_px: tuple[int, int] = (128, 128),
    count: int | None = None,
    cast: Sequence[Identity] | None = None,
    place: str | None = None,
    action: str | None = None,
    relation: str | None = None,
    style: str | None = "cartoon",
    detail: float | None = None,
    truth: bool = True,
) -> RenderedScene:
    """Draw the scene with this seed; what is None is drawn from the seed.

    action is done by every figure that can do it; detail is the probability that an attribute is named in the
    caption; without truth, masks and boxes are left out. Raises ValueError for a relation that the cast cannot
    be in.
    """
    rng = random.Random(f"world2 scene {seed}")
    if cast is None:
        cast, relation = sample_cast(rng, size_px, count, relation)
    able = possible_relations([who.class_name for who in cast])
    if relation is None:
        relation = rng.choice(able)
    elif relation not in able:
        raise ValueError(f"relation {relation!r} is not possible here; this cast can be: {', '.join(able)}")
    place = rng.choice(list(PLACES)) if place is None else place
    style = sample_style(rng) if style is None else style
    layout = arrange(rng, [who.class_name for who in cast], relation, action, size_px)
    if detail is None:
        detail = rng.choice((0.0, 0.15, 0.35, 0.6, 0.9))
    actions = [spot.action for spot in layout.spots]
    caption = write_caption(rng, cast, actions, relation, place, style, detail)
    horizon = size_px[1] * rng.uniform(0.5, 0.58)
    image, ids, keypoints = _draw(rng, cast, layout, place, size_px, horizon)
    image = apply_style(image, ids, style, rng)
    figures = tuple(_figure(i, cast, layout, ids, keypoints, truth) for i in range(len(cast)))
    ground = tuple(spot.ground_y for spot in layout.spots)
    return RenderedScene(image, caption, place, style, relation, figures, ids, horizon, ground)


def _brush(canvas: ImageDraw.ImageDraw, layout: Layout, i: int, mask_only: bool = False) -> Brush:
    spot = layout.spots[i]
    return Brush(canvas, i + 1, spot.x, spot.y, spot.scale, spot.mirror, mask_only=mask_only)


def _pose(layout: Layout, i: int) -> Pose:
    """The pose of a figure, with the points that its hands reach for in its own coordinates."""
    spot = layout.spots[i]
    sign = -1 if spot.mirror else 1
    local = [
        None if hand is None else (sign * (hand[0] - spot.x) / spot.scale, (hand[1] - spot.y) / spot.scale)
        for hand in (spot.hands if not spot.mirror else spot.hands[::-1])
    ]
    look = 0.0
    if layout.touches[i]:
        other = layout.spots[layout.touches[i][0]]
        look = sign * max(-1.0, min(1.0, (other.x - spot.x) / 12))
    return Pose(spot.action, (local[0], local[1]), look, spot.wide_arms)


def _draw(
    rng: random.Random, cast: Sequence[Identity], layout: Layout, place: str, size_px: tuple[int, int], horizon: float
) -> tuple[Image.Image, NDArray[np.uint8], list[Keypoints]]:
    """Paint the place, the shadows and the figures; returns the picture, the ids and the keypoints."""
    canvas = Image.new("RGBA", (size_px[0] * SUPERSAMPLE, size_px[1] * SUPERSAMPLE))
    ink = ImageDraw.Draw(canvas)
    ground = Brush(ink)
    paint_place(ground, place, rng, size_px, horizon)
    for spot in layout.spots:
        ground.ellipse(spot.x, spot.ground_y, 19 * spot.scale, 4.4 * spot.scale, PLACES[place].shadow, ink=False)
    poses = [_pose(layout, i) for i in range(len(cast))]
    for i, layer in layout.layers:
        draw_figure(_brush(ink, layout, i), cast[i], poses[i], layer)
    keypoints = [keypoints_of(_brush(ink, layout, i), cast[i], poses[i]) for i in range(len(cast))]
    half = SUPERSAMPLE // 2
    ids = np.asarray(canvas.getchannel("A"))[half::SUPERSAMPLE, half::SUPERSAMPLE].copy()
    return canvas.convert("RGB").reduce(SUPERSAMPLE), ids, keypoints


def _figure(
    i: int,
    cast: Sequence[Identity],
    layout: Layout,
    ids: NDArray[np.uint8],
    keypoints: Sequence[Keypoints],
    truth: bool,
) -> RenderedFigure:
    none = np.zeros((0, 0), dtype=np.bool_)
    full = _full_mask(i, cast, layout, ids.shape) if truth else none
    visible = ids == i + 1 if truth else none
    spot = layout.spots[i]
    box = _box(full) if truth else (0.0, 0.0, 0.0, 0.0)
    height, width = ids.shape
    inside = {k: (x, y) for k, (x, y) in keypoints[i].items() if 0 <= x < width and 0 <= y < height}
    return RenderedFigure(cast[i], spot.action, visible, full, layout.depths[i], box, inside, layout.touches[i])


def _full_mask(i: int, cast: Sequence[Identity], layout: Layout, shape: tuple[int, ...]) -> Mask:
    """The whole figure, hidden parts included: its drawing repeated on an empty canvas."""
    canvas = Image.new("L", (shape[1] * SUPERSAMPLE, shape[0] * SUPERSAMPLE))
    brush = _brush(ImageDraw.Draw(canvas), layout, i, mask_only=True)
    for layer in ("back", "front"):
        draw_figure(brush, cast[i], _pose(layout, i), layer)
    half = SUPERSAMPLE // 2
    return np.asarray(canvas)[half::SUPERSAMPLE, half::SUPERSAMPLE] > 0


def _box(mask: Mask) -> Box:
    """The bounds of a mask as (left, top, right, bottom) fractions."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
