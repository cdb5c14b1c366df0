"""Intersection over union of masks and boxes."""

import numpy as np
import pytest

from costars.segment.overlap import box_iou, mask_iou


def test_mask_iou_is_intersection_over_union(make_region):
    one, other = make_region("", (0, 0, 0.5, 1)).mask, make_region("", (0.25, 0, 0.75, 1)).mask
    assert mask_iou(one, other) == pytest.approx(1 / 3)
    assert mask_iou(one, one) == 1 and mask_iou(one, 0 * one) == 0 == mask_iou(0 * one, 0 * one)


@pytest.mark.parametrize(
    ("other", "expected"),
    [((0.25, 0, 0.75, 1), 1 / 3), ((0, 0, 0.5, 1), 1), ((0.5, 0, 1, 1), 0), ((0.6, 0, 1, 0.5), 0)],
)
def test_box_iou_is_intersection_over_union(other, expected):
    assert box_iou((0, 0, 0.5, 1), other) == pytest.approx(expected)


def test_empty_box_has_no_overlap():
    assert box_iou((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)) == 0
    assert np.isfinite(box_iou((0, 0, 0, 0), (0, 0, 1, 1)))
