"""Scenes of World 2: determinism, sizes, masks, depth, contact and keypoints."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from costars_world.world2.render.cast import COUNT_WEIGHTS
from costars_world.world2.render.layout import CONTACT, PAIR_RELATIONS, possible_actions
from costars_world.world2.render.scene import (
    HELD_OUT_STYLES,
    PLACES,
    SHAPES,
    STYLES,
    RenderedScene,
    sample_identity,
    sample_scene,
)

SCENES = [sample_scene(seed, size_px=size) for size in SHAPES for seed in range(25)]


def _near(mask: np.ndarray, x: float, y: float, reach: int) -> bool:
    left, top = max(0, int(x) - reach), max(0, int(y) - reach)
    return bool(mask[top : int(y) + reach + 1, left : int(x) + reach + 1].any())


def _same(a: RenderedScene, b: RenderedScene) -> bool:
    masks = all((p.full_mask == q.full_mask).all() for p, q in zip(a.figures, b.figures, strict=True))
    return a.caption == b.caption and a.image.tobytes() == b.image.tobytes() and masks


@pytest.mark.parametrize("style", [*STYLES, *HELD_OUT_STYLES])
def test_same_seed_same_scene(style: str) -> None:
    assert _same(sample_scene(5, style=style), sample_scene(5, style=style))
    assert sample_scene(5, style=style).image.tobytes() != sample_scene(6, style=style).image.tobytes()


def test_without_truth_the_picture_is_the_same() -> None:
    plain, full = sample_scene(9, truth=False), sample_scene(9)
    assert plain.image.tobytes() == full.image.tobytes()
    assert plain.caption == full.caption
    assert plain.figures[0].visible_mask.size == 0


@pytest.mark.parametrize("size_px", SHAPES)
def test_sizes_and_counts(size_px: tuple[int, int]) -> None:
    for seed in range(40):
        scene = sample_scene(seed, size_px=size_px, truth=False)
        assert scene.image.size == size_px
        assert scene.image.mode == "RGB"
        assert scene.ids.shape == (size_px[1], size_px[0])
        assert len(scene.figures) in COUNT_WEIGHTS[size_px]


def test_every_count_is_possible() -> None:
    for count in range(1, 6):
        assert len(sample_scene(3, size_px=(256, 128), count=count).figures) == count


def test_styles_do_not_move_figures() -> None:
    scenes = [sample_scene(11, style=style) for style in (*STYLES, *HELD_OUT_STYLES)]
    assert all((scene.ids == scenes[0].ids).all() for scene in scenes)
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_masks_are_disjoint_and_within_the_full_masks() -> None:
    for scene in SCENES:
        total = sum(figure.visible_mask.astype(int) for figure in scene.figures)
        assert np.max(total) <= 1
        for figure in scene.figures:
            assert (figure.visible_mask <= figure.full_mask).all()
            assert figure.visible_mask.any()


def test_a_nearer_figure_hides_a_farther_one() -> None:
    for scene in SCENES:
        assert sorted(figure.depth for figure in scene.figures) == list(range(len(scene.figures)))
        for far in scene.figures:
            for i, near in enumerate(scene.figures):
                if near.depth < far.depth and i not in far.touches:
                    assert not (near.full_mask & far.visible_mask).any()


def test_depth_follows_the_ground() -> None:
    for scene in SCENES:
        order = sorted(range(len(scene.figures)), key=lambda i: scene.figures[i].depth)
        for near, far in itertools.pairwise(order):
            assert scene.ground_px[near] >= scene.ground_px[far] - 0.6


def test_boxes_bound_the_full_masks() -> None:
    for scene in SCENES:
        height, width = scene.ids.shape
        for figure in scene.figures:
            left, top, right, bottom = figure.box
            rows, columns = np.nonzero(figure.full_mask)
            assert (columns.min(), rows.min()) == pytest.approx((left * width, top * height))
            assert (columns.max() + 1, rows.max() + 1) == pytest.approx((right * width, bottom * height))


def test_most_of_every_figure_can_be_seen() -> None:
    shares = [f.visible_mask.sum() / f.full_mask.sum() for scene in SCENES for f in scene.figures]
    assert np.mean(shares) > 0.85
    assert np.mean(np.asarray(shares) < 0.35) < 0.02


def test_keypoints_lie_in_the_picture_near_their_figure() -> None:
    for scene in SCENES:
        width, height = scene.image.size
        for figure in scene.figures:
            assert len(figure.keypoints) >= 3
            for name, (x, y) in figure.keypoints.items():
                assert 0 <= x < width and 0 <= y < height
                assert _near(figure.full_mask, x, y, 4), (figure.identity.class_name, figure.action, name)


def test_left_and_right_are_the_figures_own() -> None:
    for scene in SCENES:
        for figure in scene.figures:
            if "left_eye" in figure.keypoints and "right_eye" in figure.keypoints:
                assert figure.keypoints["left_eye"][0] > figure.keypoints["right_eye"][0]


@pytest.mark.parametrize("relation", PAIR_RELATIONS)
def test_touches_say_who_is_in_contact(relation: str) -> None:
    for seed in range(12):
        scene = sample_scene(seed, relation=relation, count=2)
        a, b = scene.figures
        if relation in CONTACT:
            assert a.touches == (1,) and b.touches == (0,)
            grown = np.zeros_like(a.full_mask)
            for y, x in zip(*np.nonzero(a.full_mask), strict=True):
                grown[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = True
            assert (grown & b.full_mask).any()
        else:
            assert a.touches == b.touches == ()


def test_a_cast_a_place_and_an_action_can_be_fixed() -> None:
    rng = random.Random(1)
    cast = [sample_identity(rng, "woman"), sample_identity(rng, "cat")]
    scene = sample_scene(4, cast=cast, place="moon", action="jumping", relation="behind")
    assert [figure.identity for figure in scene.figures] == cast
    assert scene.place == "moon" and scene.place in PLACES
    assert [figure.action for figure in scene.figures] == ["jumping", "jumping"]


def test_actions_fit_their_class() -> None:
    for scene in SCENES:
        for figure in scene.figures:
            assert figure.action in (*possible_actions(figure.identity.class_name), "riding")


def test_an_impossible_relation_is_refused() -> None:
    rng = random.Random(1)
    cast = [sample_identity(rng, "ball"), sample_identity(rng, "cat")]
    with pytest.raises(ValueError, match="holding hands with"):
        sample_scene(4, cast=cast, relation="holding hands with")
