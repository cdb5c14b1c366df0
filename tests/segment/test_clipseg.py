"""CLIPSeg's maps become one region for each connected component."""

import pytest
import torch

from costars.segment import checkpoint_cache
from costars.segment import clipseg as module
from costars.segment.clipseg import ClipSeg, compute_phrase_maps


def test_components_are_regions_of_their_best_phrase_without_specks(load_tiny, stub_model, make_image, make_layout):
    """The image is 64 x 32 px, CLIPSeg's map of it 32 x 32."""
    logits = torch.full((2, 32, 32), -4.0)
    logits[0, 8:24, 4:8] = logits[0, 4:30, 20:28] = 4
    logits[1, 8:24, 4:8] = 1  # a dog too, but with a lower score
    logits[1, 10:20, 11:15] = 4
    logits[0, 2, 12] = 4
    clipseg = stub_model(load_tiny("clipseg"), lambda pixel_values, **_: {"logits": logits})
    maps = compute_phrase_maps(clipseg, make_image(64, 32), ["woman", "dog"])
    assert maps.shape == (2, 32, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "check_checkpoint", lambda *_, **__: None)
        patch.setattr(checkpoint_cache, "open_checkpoint", lambda *_, **__: clipseg)
        regions = ClipSeg(device=torch.device("cpu"), dtype=torch.float32, offline=True)(
            make_layout(make_image(64, 32)), ["woman", "dog"]
        )
    boxes = {("woman", 0): (20, 4, 28, 30), ("woman", 1): (4, 8, 8, 24), ("dog", 2): (11, 10, 15, 20)}
    assert {(r.class_name, r.depth): r.box for r in regions} == {
        key: pytest.approx([side / 32 for side in box]) for key, box in boxes.items()
    }
    for region in regions:
        inside = maps[0 if region.class_name == "woman" else 1][region.mask > 0]
        assert region.score == pytest.approx(inside.mean()) and inside.min() > 0.5
