"""The report of an EM run."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from costars.train.em.group_images import collect_group_images
from costars.train.em.report import MaskHistory, write_report


def given_masks(subjects) -> dict[tuple[int, str], np.ndarray]:
    images = collect_group_images(subjects)
    return {(i, name): image.given_masks[name] for i, image in enumerate(images) for name in image.names}


def test_mask_files_are_named_after_their_images(data, tmp_path):
    """Also if the background of the second image comes first."""
    meadow, ana, rex = data.pair_in_meadow()
    subjects = (replace(meadow, examples=[replace(ana.examples[1], mask=None)]), ana, rex)
    write_report(MaskHistory(subjects, masks=given_masks(subjects)), tmp_path)
    drawn = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "masks").iterdir()}
    assert set(drawn) == {"one.ana.png", "one.rex.png", "two.ana.png", "two.m.png"}
    assert np.array_equal(drawn["two.m.png"], 255 - drawn["two.ana.png"])


def test_history_has_one_row_for_each_new_set_of_masks(data):
    history, first = MaskHistory(data.pair()), given_masks(data.pair())
    second = {key: mask.copy() for key, mask in first.items()}
    second[0, "rex"][:32] = 0
    assert [history.record(step, masks) for step, masks in enumerate((first, first, second))] == [True, False, True]
    before, after = history.rows
    assert (before["step"], after["step"]) == (0, 2)
    assert before["iou"] == {"ana": 1.0, "rex": 1.0} and before["same"] == {}
    assert after["iou"] == after["same"] == {"ana": 1.0, "rex": pytest.approx(0.5)}


def test_masks_of_a_checkpoint_are_not_recorded_again(data):
    masks = given_masks(data.pair())
    history = MaskHistory(data.pair(), masks={k: m.copy() for k, m in masks.items()}, from_checkpoint=True)
    assert not history.record(3, masks) and history.rows == []
