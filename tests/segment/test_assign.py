"""Assignment: one figure for each member, the best of all matchings, or an error that says who is missing."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from costars.errors import RegionError, SceneError
from costars.scene.scene import CastMember
from costars.segment.match_cast import assign, mask_iou
from costars.types import Layout, Region

LAYOUT = Layout(Image.new("RGB", (64, 64)), torch.zeros(1), {}, "", 0)
# Five places in a row, apart from each other.
SPOTS = [(0.02 + 0.2 * i, 0.2 + 0.03 * i, 0.14 + 0.2 * i, 0.8) for i in range(5)]


def box_region(class_name: str, box: tuple[float, ...], score: float = 1.0, depth: int = 0) -> Region:
    left, top, right, bottom = (round(64 * v) for v in box)
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[top:bottom, left:right] = 1
    return Region(class_name, mask, score, depth)


def member(**changes) -> CastMember:
    return CastMember(concept="x", **changes)


def places(found: dict[str, Region]) -> dict[str, int]:
    """Which of the five places each member got."""
    return {name: round((region.box[0] - 0.02) / 0.2) for name, region in found.items()}


def women(*where, classes: str = "woman") -> tuple[dict, dict]:
    names = [chr(ord("a") + i) for i in range(len(where))]
    return {n: member(where=w) for n, w in zip(names, where, strict=True)}, dict.fromkeys(names, classes)


def test_classes_decide_first():
    cast = {"ana": member(), "bo": member(), "rex": member(where="left")}
    classes = {"ana": "woman", "bo": "man", "rex": "dog"}
    regions = [box_region(c, SPOTS[i]) for i, c in enumerate(("dog", "man", "woman"))]
    assert places(assign(cast, classes, regions, LAYOUT)) == {"ana": 2, "bo": 1, "rex": 0}


@given(st.permutations(range(5)), st.integers(1, 5))
def test_without_a_wish_the_prompts_order_goes_from_left_to_right_whatever_the_regions_order(order, count):
    cast, classes = women(*[None] * count)
    regions = [box_region("woman", SPOTS[i]) for i in order if i < count]
    assert list(places(assign(cast, classes, regions, LAYOUT)).values()) == list(range(count))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (("right", "left"), [2, 0]),
        ((None, "left"), [1, 0]),
        (((0.48, 0.5), None), [1, 0]),
        (((0.9, 0.5), (0.1, 0.5)), [2, 0]),
        (((0.42, 0.26, 0.54, 0.8), (0.0, 0.2, 0.15, 0.8)), [2, 0]),
        (("left", (0.05, 0.5)), [0, 1]),
    ],
)
def test_where_says_who_is_who(where, expected):
    regions = [box_region("woman", SPOTS[i]) for i in sorted({0, *expected, 1 if "left" in where else 0})]
    assert list(places(assign(*women(*where), regions, LAYOUT)).values()) == expected


points = st.tuples(st.floats(0, 1), st.floats(0, 1))
ORDER_AT_MOST = 0.05  # what the preference for prompt order may cost a member, as a distance


@given(st.lists(points, min_size=2, max_size=4), st.permutations(range(5)))
def test_points_are_matched_with_the_least_total_distance_in_any_order(wished, order):
    cast, classes = women(*wished)
    regions = [box_region("woman", s) for s in SPOTS]
    middles = [((r.box[0] + r.box[2]) / 2, (r.box[1] + r.box[3]) / 2) for r in regions]

    def total(chosen) -> float:
        ways = [(x - middles[i][0], y - middles[i][1]) for i, (x, y) in zip(chosen, wished, strict=True)]
        return sum(float(np.hypot(*way)) for way in ways)

    found = tuple(places(assign(cast, classes, regions, LAYOUT)).values())
    best = min(total(chosen) for chosen in permutations(range(5), len(wished)))
    assert total(found) <= best + ORDER_AT_MOST * len(wished)
    assert tuple(places(assign(cast, classes, [regions[i] for i in order], LAYOUT)).values()) == found


@pytest.mark.parametrize("where", ["left", (0.0, 0.0, 0.1, 1.0)])
def test_a_member_that_stands_elsewhere_than_the_scene_says_is_refused(where):
    cast = {"ana": member(where=where), "bo": member()}
    regions = [box_region("man", SPOTS[1]), box_region("woman", SPOTS[4])]
    with pytest.raises(RegionError, match=r"ana \(woman\) does not stand where the scene says"):
        assign(cast, {"ana": "woman", "bo": "man"}, regions, LAYOUT)


def test_no_greedy_choice_leaves_a_member_without_the_figure_that_was_there():
    cast = {"a": member(where="left"), "b": member(where=(0.08, 0.5))}
    regions = [box_region("woman", SPOTS[0]), box_region("woman", SPOTS[4])]
    assert sorted(places(assign(cast, dict.fromkeys(cast, "woman"), regions, LAYOUT)).values()) == [0, 4]


def test_who_is_missing_is_named_with_what_was_found_and_what_to_do():
    cast, classes = {"ana": member(), "bo": member()}, {"ana": "woman", "bo": "man"}
    regions = [box_region("woman", SPOTS[0]), box_region("woman", SPOTS[2])]
    with pytest.raises(RegionError, match=r"does not show bo \(man\); it shows 2 woman for a cast of 2") as caught:
        assign(cast, classes, regions, LAYOUT)
    assert "--retries" in str(caught.value)
    assert caught.value.layout is LAYOUT and caught.value.regions == tuple(regions)


def test_six_members_where_five_figures_exist_names_the_sixth():
    cast, classes = women(*[None] * 6)
    with pytest.raises(RegionError, match=r"does not show \w \(woman\); it shows 5 woman for a cast of 6"):
        assign(cast, classes, [box_region("woman", s) for s in SPOTS], LAYOUT)


@pytest.mark.parametrize(
    "regions", [[], [box_region("woman", (0.1, 0.1, 0.12, 0.2))], [box_region("woman", SPOTS[0], 0.2)]]
)
def test_an_empty_tiny_or_doubtful_region_shows_nobody(regions):
    cast, classes = women(None)
    with pytest.raises(RegionError, match=r"does not show a \(woman\); it shows nobody"):
        assign(cast, classes, regions, LAYOUT)


def test_a_figure_that_scored_too_low_is_told_with_its_score():
    found = [box_region("woman", SPOTS[0], 0.23), box_region("man", SPOTS[2], 0.1)]
    with pytest.raises(
        RegionError, match=r"it shows nobody \(a woman with a score of 0\.23 does not count\) for a cast"
    ):
        assign(*women(None), found, LAYOUT)


def test_of_two_regions_that_are_one_figure_the_better_stays():
    cast, classes = women(None)
    twice = [box_region("woman", SPOTS[0], 0.6), box_region("woman", SPOTS[0], 0.9)]
    assert assign(cast, classes, twice, LAYOUT)["a"].score == 0.9
    with pytest.raises(RegionError, match=r"does not show b \(woman\); it shows 1 woman"):
        assign(*women(None, None), twice, LAYOUT)


def overlapping(*depths, given_depths=(None, None)) -> dict[str, Region]:
    cast, classes = women(None, None)
    cast = {n: c.model_copy(update={"depth": d}) for (n, c), d in zip(cast.items(), given_depths, strict=True)}
    regions = [
        box_region("woman", (0.1, 0.2, 0.5, 0.8), depth=depths[0]),
        box_region("woman", (0.4, 0.2, 0.8, 0.8), depth=depths[1]),
    ]
    return assign(cast, classes, regions, LAYOUT)


@pytest.mark.parametrize(
    ("depths", "given_depths", "front"),
    [
        ((0, 1), (None, None), "a"),
        ((1, 0), (None, None), "b"),
        ((0, 1), (1, 0), "b"),
        ((0, 1), (None, 0), "b"),
        ((0, 1), (1, None), "b"),
    ],
)
def test_masks_are_apart_and_the_front_one_is_whole(depths, given_depths, front):
    found = overlapping(*depths, given_depths=given_depths)
    assert sum(r.mask for r in found.values()).max() == 1
    back = "b" if front == "a" else "a"
    assert (found[front].depth, found[back].depth) == (0, 1)
    assert found[front].area > found[back].area
    assert list(found) == ["a", "b"]


def write_mask(path, box) -> str:
    Image.fromarray((box_region("", box).mask * 255).astype(np.uint8)).save(path)
    return path.name


def test_a_mask_file_beside_the_scene_is_the_members_own_region(tmp_path):
    name = write_mask(tmp_path / "mine.png", SPOTS[3])
    found = assign(*women(name, None), [box_region("woman", SPOTS[0])], LAYOUT, base=tmp_path)
    assert places(found) == {"a": 3, "b": 0}
    assert found["a"].score == 1


def test_a_figure_under_someones_mask_file_is_taken_and_the_others_have_the_rest(tmp_path):
    name = write_mask(tmp_path / "mine.png", SPOTS[0])
    regions = [box_region("woman", SPOTS[0]), box_region("woman", SPOTS[3])]
    assert places(assign(*women(name, None), regions, LAYOUT, base=tmp_path)) == {"a": 0, "b": 3}


def test_two_mask_files_that_claim_one_figure_are_refused(tmp_path):
    first = write_mask(tmp_path / "one.png", (0.1, 0.1, 0.5, 0.9))
    second = write_mask(tmp_path / "two.png", (0.1, 0.2, 0.5, 0.9))
    with pytest.raises(RegionError, match=r"a and b would share one figure .* give them different masks"):
        assign(*women(first, second), [], LAYOUT, base=tmp_path)


def test_an_empty_mask_file_is_refused(tmp_path):
    name = write_mask(tmp_path / "none.png", (0, 0, 0, 0))
    with pytest.raises(RegionError, match=r"a's visible mask covers 0.00% of the picture, want at least 0.80%"):
        assign(*women(name), [], LAYOUT, base=tmp_path)


def test_a_sole_member_of_its_class_is_the_better_figure_not_the_left_one(make_region):
    scrap, dog = make_region("dog", (0.1, 0.4, 0.2, 0.6), 0.5, 0), make_region("dog", (0.5, 0.3, 0.9, 0.9), 0.95, 1)
    cast = {"rex": CastMember(concept="rex")}
    assert assign(cast, {"rex": "dog"}, [scrap, dog], LAYOUT)["rex"].box == dog.box


def test_a_mask_of_another_shape_than_the_picture_is_refused(tmp_path):
    Image.new("L", (300, 100), 255).save(tmp_path / "wide.png")
    with pytest.raises(SceneError, match=r"wide\.png' is 300 x 100 px"):
        assign(*women("wide.png"), [], LAYOUT, base=tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16"])
def test_a_mask_is_white_on_black_in_every_kind_of_grey(tmp_path, mode):
    levels = np.zeros((64, 64), np.uint16)
    levels[:, :32] = 40_000
    grey = Image.fromarray(levels if mode == "I;16" else np.where(levels, 255, 0).astype(np.uint8))
    (grey if mode == "I;16" else grey.convert(mode)).save(tmp_path / "ana.png")
    region = assign({"ana": member(where="ana.png")}, {"ana": "woman"}, [], LAYOUT, base=tmp_path)["ana"]
    assert region.mask[:, :32].all() and not region.mask[:, 32:].any()


@pytest.mark.parametrize("mode", ["alpha", "colour"])
def test_a_mask_whose_shape_is_in_its_alpha_or_its_colours_is_refused(tmp_path, mode):
    image = Image.new("RGBA", (64, 64), "white")
    image.paste((255, 255, 255, 0) if mode == "alpha" else (255, 0, 0, 255), (0, 0, 32, 64))
    image.save(tmp_path / "ana.png")
    with pytest.raises(SceneError, match=r"where: 'ana.png' has colours or an alpha channel; want white on black"):
        assign({"ana": member(where="ana.png")}, {"ana": "woman"}, [], LAYOUT, base=tmp_path)


def test_a_mask_file_that_is_not_there_or_no_picture_says_so(tmp_path):
    with pytest.raises(
        SceneError,
        match=r"where: 'gone.png' is not left, right, a point, a box, nor a mask file \(.*gone.png is not there\)",
    ):
        assign(*women("gone.png"), [], LAYOUT, base=tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(SceneError, match=r"text.png"):
        assign(*women("text.png"), [], LAYOUT, base=tmp_path)


def test_overlap_is_shared_area_over_joint_area():
    one, other = box_region("", (0, 0, 0.5, 1)).mask, box_region("", (0.25, 0, 0.75, 1)).mask
    assert mask_iou(one, other) == pytest.approx(1 / 3)
    assert mask_iou(one, one) == 1 and mask_iou(one, 0 * one) == 0 == mask_iou(0 * one, 0 * one)
