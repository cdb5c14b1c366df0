"""The built-in segmenter: its grouping of pixels with a perfect network, and the shipped weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import costars
from costars.builtin.segmenter import OFFSET_PX, SegmenterNet, WorldSegmenter, load_segmenter
from costars.errors import SceneError
from costars.segment.overlap import mask_iou
from costars_world.render.identity import CLASSES, identity_from_seed
from costars_world.render.world import WorldPicture, sample_picture
from costars_world.training.segmenter import evaluate

WEIGHTS = Path(costars.__file__).parent / "builtin" / "weights"


class PerfectNet(nn.Module):
    """Predicts a picture's true classes, centre offsets and depths."""

    def __init__(self, picture: WorldPicture) -> None:
        super().__init__()
        self.scores = torch.zeros(1, len(CLASSES) + 1, 128, 128)
        self.scores[:, 0] = 5.0
        self.offsets, self.depth = torch.zeros(1, 2, 128, 128), torch.zeros(1, 128, 128)
        for figure in picture.figures:
            rows, columns = np.nonzero(figure.visible_mask)
            index = CLASSES.index(figure.identity.class_name) + 1
            self.scores[0, 0, rows, columns], self.scores[0, index, rows, columns] = 0.0, 8.0
            ys, xs = np.nonzero(figure.full_mask)
            centre = (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2
            self.offsets[0, 0, rows, columns] = torch.tensor((centre[0] - columns) / OFFSET_PX, dtype=torch.float32)
            self.offsets[0, 1, rows, columns] = torch.tensor((centre[1] - rows) / OFFSET_PX, dtype=torch.float32)
            self.depth[0, rows, columns] = float(figure.depth)

    def forward(self, x):
        return self.scores, self.offsets, self.depth


def make_segmenter(net: nn.Module) -> WorldSegmenter:
    return WorldSegmenter(net, torch.device("cpu"))


@pytest.mark.parametrize("seed", range(6))
def test_overlapping_figures_of_one_class_are_two_regions(seed):
    picture = sample_picture(seed, cast=[identity_from_seed(i, "woman") for i in (1, 2)])
    regions = make_segmenter(PerfectNet(picture)).find_regions(picture.image, ["woman"])
    assert [r.class_name for r in regions] == ["woman", "woman"]
    for figure in picture.figures:
        truth = figure.visible_mask.astype(np.float32)
        best = max(regions, key=lambda r: mask_iou(truth, r.mask))
        assert mask_iou(truth, best.mask) > 0.95
        assert best.depth == figure.depth and best.score > 0.9


def test_only_requested_classes_are_found():
    picture = sample_picture(1, cast=[identity_from_seed(0, "man"), identity_from_seed(0, "dog")])
    segmenter = make_segmenter(PerfectNet(picture))
    assert [r.class_name for r in segmenter.find_regions(picture.image, ["dog"])] == ["dog"]
    with pytest.raises(SceneError, match="class_name 'owl': the built-in segmenter knows man, woman"):
        segmenter.find_regions(picture.image, ["owl"])


def test_regions_have_the_size_of_the_image():
    picture = sample_picture(1, count=1)
    (region,) = make_segmenter(PerfectNet(picture)).find_regions(picture.image.resize((256, 256)))
    assert region.mask.shape == (256, 256) and set(np.unique(region.mask)) == {0.0, 1.0}


@pytest.mark.parametrize("num_stray", [0, 1, 5])
def test_empty_picture_has_no_regions(num_stray):
    picture = sample_picture(1, count=1)
    net = PerfectNet(picture)
    net.scores[:] = 0
    net.scores[:, 0] = 5.0
    net.scores[0, :2, 3, :num_stray] = torch.tensor([0.0, 8.0])[:, None]
    assert make_segmenter(net).find_regions(picture.image) == []


def test_network_outputs_have_their_documented_shapes():
    scores, offsets, depth = SegmenterNet((8, 8, 8))(torch.zeros(2, 3, 128, 128))
    assert scores.shape == (2, len(CLASSES) + 1, 128, 128)
    assert offsets.shape == (2, 2, 128, 128) and depth.shape == (2, 128, 128)


@pytest.fixture(scope="module")
def shipped() -> WorldSegmenter:
    return load_segmenter(WEIGHTS / "segmenter" / "model.safetensors", torch.device("cpu"))


def test_shipped_segmenter_is_accurate_on_held_out_renders(shipped):
    held_out = evaluate(shipped, 40, first_seed=2000)
    assert held_out["mean_iou"] >= 0.85
    assert held_out["class_right"] >= 0.95


def test_shipped_segmenter_separates_two_women(shipped):
    correct = 0
    for seed in range(10):
        cast = [identity_from_seed(seed, "woman"), identity_from_seed(100 + seed, "woman")]
        regions = shipped.find_regions(sample_picture(3000 + seed, cast=cast).image, ["woman"])
        correct += [r.class_name for r in regions] == ["woman", "woman"]
    assert correct >= 9
