"""Rendered pictures have exact masks, depths and captions."""

import re

import numpy as np
import pytest

from costars_world.render.backgrounds import PLACES
from costars_world.render.identity import identity_from_seed
from costars_world.render.world import MAX_FIGURES, SIZE_PX, sample_picture

SEEDS = range(24)


@pytest.fixture(scope="module")
def pictures():
    return [sample_picture(seed, detail=0.5) for seed in SEEDS]


def test_seed_determines_the_picture():
    one, again, other = sample_picture(3), sample_picture(3), sample_picture(4)
    assert one.image.tobytes() == again.image.tobytes() and one.caption == again.caption
    assert all(np.array_equal(a.full_mask, b.full_mask) for a, b in zip(one.figures, again.figures, strict=True))
    assert other.image.tobytes() != one.image.tobytes()


def test_visible_masks_exclude_nearer_figures(pictures):
    for picture in pictures:
        covered = np.zeros((SIZE_PX, SIZE_PX), dtype=bool)
        for figure in sorted(picture.figures, key=lambda f: f.depth):
            assert np.array_equal(figure.visible_mask, figure.full_mask & ~covered)
            covered |= figure.full_mask
        assert sorted(f.depth for f in picture.figures) == list(range(len(picture.figures)))


def test_every_figure_is_visible(pictures):
    for picture in pictures:
        assert picture.image.size == (SIZE_PX, SIZE_PX) and picture.image.mode == "RGB"
        assert all(figure.visible_mask.sum() > 60 for figure in picture.figures)


def test_mask_covers_the_pixels_that_its_figure_changes():
    ana, bo = identity_from_seed(1, "woman"), identity_from_seed(2, "robot")
    one, other = (np.asarray(sample_picture(11, cast=[who], place="park").image, dtype=int) for who in (ana, bo))
    masks = [sample_picture(11, cast=[who], place="park").figures[0].full_mask for who in (ana, bo)]
    changed = np.abs(one - other).sum(axis=2) > 0
    either = masks[0] | masks[1]
    edge = sum(np.roll(either, shift, axis) for shift in (-1, 1) for axis in (0, 1)).astype(bool)
    assert not (changed & ~(either | edge)).any()
    assert (changed & either).sum() > 0.5 * either.sum()


@pytest.mark.parametrize("count", range(1, MAX_FIGURES + 1))
def test_count_and_place_can_be_set(count):
    picture = sample_picture(5, count=count, place="moon")
    assert len(picture.figures) == count and picture.place == "moon"
    assert picture.caption.endswith(PLACES["moon"].phrase)


def test_every_place_looks_different():
    assert len(PLACES) >= 7
    who = identity_from_seed(0, "cat")
    looks = {sample_picture(0, cast=[who], place=place).image.tobytes() for place in PLACES}
    assert len(looks) == len(PLACES)


def test_caption_names_every_class_in_order_with_detail():
    cast = [identity_from_seed(i, name) for i, name in enumerate(("dog", "woman", "robot"))]
    bare = sample_picture(2, cast=cast, detail=0.0).caption
    assert re.findall(r"\ba (dog|woman|robot)\b", bare) == ["dog", "woman", "robot"] and " with " not in bare
    assert sample_picture(2, cast=cast, detail=1.0).caption.count(" with ") == 3


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        ("in front of", lambda a, b: a.depth < b.depth),
        ("behind", lambda a, b: a.depth > b.depth),
        ("to the left of", lambda a, b: a.x < b.x),
        ("to the right of", lambda a, b: a.x > b.x),
    ],
)
def test_relation_in_the_caption_is_true(words, holds):
    pictures = [
        p for p in (sample_picture(seed, count=2, detail=0.0) for seed in range(60)) if f" {words} " in p.caption
    ]
    assert len(pictures) >= 3
    assert all(holds(*picture.figures) for picture in pictures)


def test_front_figure_usually_overlaps_the_other():
    overlaps = []
    for seed in range(60):
        picture = sample_picture(seed, count=2, detail=0.0)
        if " in front of " in picture.caption:
            front, back = picture.figures
            assert np.array_equal(front.visible_mask, front.full_mask)
            overlaps.append((front.full_mask & back.full_mask).sum())
    assert np.mean(np.array(overlaps) > 0) > 0.9
