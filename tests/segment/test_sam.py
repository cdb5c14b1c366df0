"""SAM's masks are at their boxes, one for each box."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from costars.segment.detectors import Detection
from costars.segment.sam import segment_boxes

corner = st.integers(0, 9)
cells = st.tuples(corner, corner, st.integers(1, 6), st.integers(1, 6)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.lists(cells, min_size=1, max_size=4), st.sampled_from([(128, 128), (128, 96), (96, 128), (64, 32), (48, 64)]))
def test_mask_fills_its_box_at_every_aspect_ratio(load_tiny, stub_model, paint_boxes, make_image, places, size):
    """Boxes are multiples of SAM's cells (1/16 of the longer side), so the stub's masks fill them exactly."""
    width, height = size
    cell = max(size) // 16
    places = [p for p in places if p[2] * cell <= width and p[3] * cell <= height]
    boxes = [tuple(v * cell / side for v, side in zip(p, size * 2, strict=True)) for p in places]
    found = [Detection("dog", box, 0.5) for box in boxes]
    regions = segment_boxes(stub_model(load_tiny("sam"), paint_boxes), make_image(*size), found, 0.0) if found else []
    assert len(regions) == len(found)
    for region, box in zip(regions, boxes, strict=True):
        assert region.mask.shape == (height, width)
        assert np.abs(np.subtract(region.box, box)).max() <= 1.01 / min(size)


def test_one_mask_is_requested_per_box_and_empty_masks_are_dropped(load_tiny, stub_model, make_image):
    def answer(input_boxes, multimask_output, **_):
        assert not multimask_output
        masks = torch.full((1, 2, 1, 16, 16), -1.0)
        masks[0, 0, 0, 4:12, 4:8] = 1
        return {"pred_masks": masks}

    found = [Detection("dog", (0.1, 0.1, 0.5, 0.9), 0.4), Detection("man", (0.5, 0.5, 0.9, 0.9), 0.6)]
    (region,) = segment_boxes(stub_model(load_tiny("sam"), answer), make_image(64, 64), found, 0.0)
    expected = np.zeros((64, 64), np.float32)
    expected[16:48, 16:32] = 1
    assert (region.class_name, region.score) == ("dog", 0.4)
    assert (region.mask != expected).sum() <= 4  # bilinear: corners are round
