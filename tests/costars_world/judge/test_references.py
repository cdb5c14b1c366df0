"""Reference figures are loaded with their masks, or with the largest figure found."""

import json

import numpy as np
import pytest
from PIL import Image

from costars.errors import SceneError
from costars_world.judge.judge import Verdict
from costars_world.judge.references import find_reference_identity, load_figure, load_reference_figures
from costars_world.render.identity import identity_from_seed
from costars_world.render.portraits import draw_portraits, write_portraits

CAT, DOG = identity_from_seed(1, "cat"), identity_from_seed(1, "dog")


@pytest.fixture
def folder(tmp_path):
    write_portraits(draw_portraits(CAT, 2, 1), CAT, tmp_path / "cat")
    return tmp_path / "cat"


class NoSegmenter:
    """A segmenter that finds nothing."""

    def find_regions(self, image):
        return []


def test_masks_beside_the_images_are_used(folder):
    figures = load_reference_figures(folder, NoSegmenter())
    assert len(figures) == 2
    for i, (image, mask) in enumerate(figures):
        assert image.size == (128, 128) and mask.dtype == np.float32
        assert np.array_equal(mask, np.asarray(Image.open(folder / f"{i:02d}.mask.png"), np.float32))


def test_identity_is_read_from_truth(folder):
    assert find_reference_identity(folder, []) == CAT


def test_most_frequent_verdict_is_the_identity_without_truth(tmp_path):
    verdicts = [Verdict(identity, None, {}) for identity in (DOG, CAT, DOG)]
    assert find_reference_identity(tmp_path, verdicts) == DOG


def test_image_without_mask_or_figure_is_rejected(folder):
    assert json.loads((folder / "truth.json").read_text())["class_name"] == "cat"
    with pytest.raises(SceneError, match="no figure found; give its mask with --mask FILE"):
        load_figure(folder / "00.png", None, NoSegmenter())
