"""Regions that are too small, overlap too much, or are not where the scene places them are rejected."""

import pytest
import torch
from PIL import Image

from costars.errors import SceneError
from costars.scene.scene import CastMember
from costars.segment.region_checks import check_places, check_regions, describe_missing
from costars.types import Layout, RegionError

LAYOUT = Layout(Image.new("RGB", (64, 64)), torch.zeros(1), {}, "", 0)
LEFT, RIGHT = (0.1, 0.1, 0.4, 0.9), (0.6, 0.1, 0.9, 0.9)


def test_separate_regions_of_the_right_classes_pass(make_region):
    check_regions({"a": make_region("woman", LEFT), "b": make_region("man", RIGHT)}, {"a": "woman", "b": "man"}, LAYOUT)


def test_member_of_another_class_is_rejected(make_region):
    with pytest.raises(SceneError, match=r"cast\.a: the plan's region is a woman, but a is now a man; plan the scene"):
        check_regions({"a": make_region("woman", LEFT)}, {"a": "man"}, LAYOUT)


def test_shared_figure_is_rejected_with_the_layout(make_region):
    regions = {"a": make_region("woman", LEFT), "b": make_region("woman", LEFT)}
    with pytest.raises(RegionError, match=r"a and b would share one figure \(mask IoU 1.00, at most 0.5\)") as caught:
        check_regions(regions, dict.fromkeys(regions, "woman"), LAYOUT)
    assert caught.value.layout is LAYOUT and caught.value.regions == tuple(regions.values())


def test_tiny_region_is_rejected(make_region):
    with pytest.raises(RegionError, match=r"a's visible mask covers 0.02% of the picture, at least 0.80% is needed"):
        check_regions({"a": make_region("woman", (0, 0, 1 / 64, 1 / 64))}, {"a": "woman"}, LAYOUT)


@pytest.mark.parametrize(
    ("where", "passes"),
    [("left", False), ("right", True), ((0.0, 0.0, 0.3, 1.0), False), ((0.5, 0.0, 1.0, 1.0), True), ((0.0, 0.0), True)],
)
def test_sides_and_boxes_are_enforced_and_points_are_not(make_region, where, passes):
    regions = {"a": make_region("woman", RIGHT), "b": make_region("man", LEFT)}
    cast = {"a": CastMember(concept="x", where=where), "b": CastMember(concept="x")}
    if passes:
        check_places(regions, cast, LAYOUT, ())
        return
    with pytest.raises(RegionError, match=r"a \(woman\) is at \[.*\], not at its place in the scene"):
        check_places(regions, cast, LAYOUT, ())


def test_missing_members_are_described_with_the_figures_found(make_region):
    text = describe_missing(
        ["bo"],
        {"ana": "woman", "bo": "man"},
        [make_region("woman", LEFT)] * 2,
        [make_region("man", RIGHT, 0.1)],
    )
    assert text.startswith("the layout does not show bo (man); it shows 2 woman (a man scores only 0.10) for a cast")
    assert "--retries" in text
