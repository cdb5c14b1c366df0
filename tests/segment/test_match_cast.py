"""match_cast gives every member one region by an optimal assignment, or an error that names who is missing."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from costars.scene.scene import CastMember
from costars.segment.match_cast import match_cast
from costars.types import Layout, Region, RegionError

LAYOUT = Layout(Image.new("RGB", (64, 64)), torch.zeros(1), {}, "", 0)
# Five separate places in a row.
SPOTS = [(0.02 + 0.2 * i, 0.2 + 0.03 * i, 0.14 + 0.2 * i, 0.8) for i in range(5)]


def box_region(class_name: str, box: tuple[float, ...], score: float = 1.0, depth: int = 0) -> Region:
    left, top, right, bottom = (round(64 * v) for v in box)
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[top:bottom, left:right] = 1
    return Region(class_name, mask, score, depth)


def member(**changes) -> CastMember:
    return CastMember(concept="x", **changes)


def places(found: dict[str, Region]) -> dict[str, int]:
    """Index of the place of each member."""
    return {name: round((region.box[0] - 0.02) / 0.2) for name, region in found.items()}


def women(*where, classes: str = "woman") -> tuple[dict, dict]:
    names = [chr(ord("a") + i) for i in range(len(where))]
    return {n: member(where=w) for n, w in zip(names, where, strict=True)}, dict.fromkeys(names, classes)


def test_members_get_regions_of_their_class():
    cast = {"ana": member(), "bo": member(), "rex": member(where="left")}
    classes = {"ana": "woman", "bo": "man", "rex": "dog"}
    regions = [box_region(c, SPOTS[i]) for i, c in enumerate(("dog", "man", "woman"))]
    assert places(match_cast(cast, classes, regions, LAYOUT)) == {"ana": 2, "bo": 1, "rex": 0}


@given(st.permutations(range(5)), st.integers(1, 5))
def test_prompt_order_is_left_to_right_without_places(order, count):
    cast, classes = women(*[None] * count)
    regions = [box_region("woman", SPOTS[i]) for i in order if i < count]
    assert list(places(match_cast(cast, classes, regions, LAYOUT)).values()) == list(range(count))


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
def test_places_decide_among_members_of_a_class(where, expected):
    regions = [box_region("woman", SPOTS[i]) for i in sorted({0, *expected, 1 if "left" in where else 0})]
    assert list(places(match_cast(*women(*where), regions, LAYOUT)).values()) == expected


points = st.tuples(st.floats(0, 1), st.floats(0, 1))
ORDER_AT_MOST = 0.05  # largest extra distance per member that prompt order may cost


@given(st.lists(points, min_size=2, max_size=4), st.permutations(range(5)))
def test_points_are_matched_with_the_smallest_total_distance(wanted, order):
    cast, classes = women(*wanted)
    regions = [box_region("woman", s) for s in SPOTS]
    middles = [((r.box[0] + r.box[2]) / 2, (r.box[1] + r.box[3]) / 2) for r in regions]

    def total(chosen) -> float:
        ways = [(x - middles[i][0], y - middles[i][1]) for i, (x, y) in zip(chosen, wanted, strict=True)]
        return sum(float(np.hypot(*way)) for way in ways)

    found = tuple(places(match_cast(cast, classes, regions, LAYOUT)).values())
    best = min(total(chosen) for chosen in permutations(range(5), len(wanted)))
    assert total(found) <= best + ORDER_AT_MOST * len(wanted)
    assert tuple(places(match_cast(cast, classes, [regions[i] for i in order], LAYOUT)).values()) == found


@pytest.mark.parametrize("where", ["left", (0.0, 0.0, 0.1, 1.0)])
def test_member_at_the_wrong_place_is_rejected(where):
    cast = {"ana": member(where=where), "bo": member()}
    regions = [box_region("man", SPOTS[1]), box_region("woman", SPOTS[4])]
    with pytest.raises(RegionError, match=r"ana \(woman\) is at .*, not at its place in the scene"):
        match_cast(cast, {"ana": "woman", "bo": "man"}, regions, LAYOUT)


def test_assignment_is_optimal_not_greedy():
    cast = {"a": member(where="left"), "b": member(where=(0.08, 0.5))}
    regions = [box_region("woman", SPOTS[0]), box_region("woman", SPOTS[4])]
    assert sorted(places(match_cast(cast, dict.fromkeys(cast, "woman"), regions, LAYOUT)).values()) == [0, 4]


def test_missing_member_is_named_with_the_figures_found():
    cast, classes = {"ana": member(), "bo": member()}, {"ana": "woman", "bo": "man"}
    regions = [box_region("woman", SPOTS[0]), box_region("woman", SPOTS[2])]
    with pytest.raises(RegionError, match=r"does not show bo \(man\); it shows 2 woman for a cast of 2") as caught:
        match_cast(cast, classes, regions, LAYOUT)
    assert "--retries" in str(caught.value)
    assert caught.value.layout is LAYOUT and caught.value.regions == tuple(regions)


def test_sixth_member_is_missing_with_five_figures():
    cast, classes = women(*[None] * 6)
    with pytest.raises(RegionError, match=r"does not show \w \(woman\); it shows 5 woman for a cast of 6"):
        match_cast(cast, classes, [box_region("woman", s) for s in SPOTS], LAYOUT)


@pytest.mark.parametrize(
    "regions", [[], [box_region("woman", (0.1, 0.1, 0.12, 0.2))], [box_region("woman", SPOTS[0], 0.2)]]
)
def test_no_tiny_or_low_scored_region_is_used(regions):
    cast, classes = women(None)
    with pytest.raises(RegionError, match=r"does not show a \(woman\); it shows nobody"):
        match_cast(cast, classes, regions, LAYOUT)


def test_low_score_is_reported():
    found = [box_region("woman", SPOTS[0], 0.23), box_region("man", SPOTS[2], 0.1)]
    with pytest.raises(RegionError, match=r"it shows nobody \(a woman scores only 0\.23\) for a cast"):
        match_cast(*women(None), found, LAYOUT)


def test_better_of_two_duplicate_regions_is_kept():
    cast, classes = women(None)
    twice = [box_region("woman", SPOTS[0], 0.6), box_region("woman", SPOTS[0], 0.9)]
    assert match_cast(cast, classes, twice, LAYOUT)["a"].score == 0.9
    with pytest.raises(RegionError, match=r"does not show b \(woman\); it shows 1 woman"):
        match_cast(*women(None, None), twice, LAYOUT)


def overlapping(*depths, given_depths=(None, None)) -> dict[str, Region]:
    cast, classes = women(None, None)
    cast = {n: c.model_copy(update={"depth": d}) for (n, c), d in zip(cast.items(), given_depths, strict=True)}
    regions = [
        box_region("woman", (0.1, 0.2, 0.5, 0.8), depth=depths[0]),
        box_region("woman", (0.4, 0.2, 0.8, 0.8), depth=depths[1]),
    ]
    return match_cast(cast, classes, regions, LAYOUT)


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
def test_masks_are_disjoint_and_the_front_one_is_complete(depths, given_depths, front):
    found = overlapping(*depths, given_depths=given_depths)
    assert sum(r.mask for r in found.values()).max() == 1
    back = "b" if front == "a" else "a"
    assert (found[front].depth, found[back].depth) == (0, 1)
    assert found[front].area > found[back].area
    assert list(found) == ["a", "b"]


def write_mask(path, box) -> str:
    Image.fromarray((box_region("", box).mask * 255).astype(np.uint8)).save(path)
    return str(path)


def test_mask_file_is_the_region(tmp_path):
    name = write_mask(tmp_path / "mine.png", SPOTS[3])
    found = match_cast(*women(name, None), [box_region("woman", SPOTS[0])], LAYOUT)
    assert places(found) == {"a": 3, "b": 0}
    assert found["a"].score == 1


def test_figure_covered_by_a_mask_file_is_not_used_again(tmp_path):
    name = write_mask(tmp_path / "mine.png", SPOTS[0])
    regions = [box_region("woman", SPOTS[0]), box_region("woman", SPOTS[3])]
    assert places(match_cast(*women(name, None), regions, LAYOUT)) == {"a": 0, "b": 3}


def test_overlapping_mask_files_are_rejected(tmp_path):
    first = write_mask(tmp_path / "one.png", (0.1, 0.1, 0.5, 0.9))
    second = write_mask(tmp_path / "two.png", (0.1, 0.2, 0.5, 0.9))
    with pytest.raises(RegionError, match=r"a and b would share one figure .* give them different masks"):
        match_cast(*women(first, second), [], LAYOUT)


def test_empty_mask_file_is_rejected(tmp_path):
    name = write_mask(tmp_path / "none.png", (0, 0, 0, 0))
    with pytest.raises(RegionError, match=r"a's visible mask covers 0.00% of the picture, at least 0.80% is needed"):
        match_cast(*women(name), [], LAYOUT)


def test_only_member_of_a_class_gets_the_better_scored_region(make_region):
    worse, better = make_region("dog", (0.1, 0.4, 0.2, 0.6), 0.5, 0), make_region("dog", (0.5, 0.3, 0.9, 0.9), 0.95, 1)
    cast = {"rex": CastMember(concept="rex")}
    assert match_cast(cast, {"rex": "dog"}, [worse, better], LAYOUT)["rex"].box == better.box
