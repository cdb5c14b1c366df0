"""The built-in segmenter's geometry, on a network that knows the truth."""

import numpy as np
import pytest
import torch
from torch import nn

from costars.builtin.segmenter import OFFSET_PX, SegmenterNet, WorldSegmenter
from costars.errors import SceneError
from costars.segment.overlap import mask_iou
from costars_world.render.identity import CLASSES, identity_from_seed
from costars_world.render.world import WorldPicture, sample_picture


class Knowing(nn.Module):
    """Answers with a picture's truth: classes, the way to each figure's middle, depth."""

    def __init__(self, picture: WorldPicture) -> None:
        super().__init__()
        self.scores = torch.zeros(1, len(CLASSES) + 1, 128, 128)
        self.scores[:, 0] = 5.0
        self.way, self.depth = torch.zeros(1, 2, 128, 128), torch.zeros(1, 128, 128)
        for figure in picture.figures:
            rows, columns = np.nonzero(figure.visible_mask)
            index = CLASSES.index(figure.identity.class_name) + 1
            self.scores[0, 0, rows, columns], self.scores[0, index, rows, columns] = 0.0, 8.0
            ys, xs = np.nonzero(figure.full_mask)
            middle = (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2
            self.way[0, 0, rows, columns] = torch.tensor((middle[0] - columns) / OFFSET_PX, dtype=torch.float32)
            self.way[0, 1, rows, columns] = torch.tensor((middle[1] - rows) / OFFSET_PX, dtype=torch.float32)
            self.depth[0, rows, columns] = float(figure.depth)

    def forward(self, x):
        return self.scores, self.way, self.depth


def segmenter(net: nn.Module) -> WorldSegmenter:
    return WorldSegmenter(net, torch.device("cpu"))


@pytest.mark.parametrize("seed", range(6))
def test_two_women_are_two_regions_also_where_they_overlap(seed):
    picture = sample_picture(seed, cast=[identity_from_seed(i, "woman") for i in (1, 2)])
    regions = segmenter(Knowing(picture)).find_regions(picture.image, ["woman"])
    assert [r.class_name for r in regions] == ["woman", "woman"]
    for figure in picture.figures:
        truth = figure.visible_mask.astype(np.float32)
        best = max(regions, key=lambda r: mask_iou(truth, r.mask))
        assert mask_iou(truth, best.mask) > 0.95
        assert best.depth == figure.depth and best.score > 0.9


def test_only_the_classes_asked_for_are_found():
    picture = sample_picture(1, cast=[identity_from_seed(0, "man"), identity_from_seed(0, "dog")])
    known = segmenter(Knowing(picture))
    assert [r.class_name for r in known.find_regions(picture.image, ["dog"])] == ["dog"]
    with pytest.raises(SceneError, match="class_name 'owl': the built-in segmenter knows man, woman"):
        known.find_regions(picture.image, ["owl"])


def test_regions_have_the_size_of_the_picture():
    picture = sample_picture(1, count=1)
    (region,) = segmenter(Knowing(picture)).find_regions(picture.image.resize((256, 256)))
    assert region.mask.shape == (256, 256) and set(np.unique(region.mask)) == {0.0, 1.0}


@pytest.mark.parametrize("stray", [0, 1, 5])
def test_a_picture_of_nobody_has_no_regions(stray):
    picture = sample_picture(1, count=1)
    net = Knowing(picture)
    net.scores[:] = 0
    net.scores[:, 0] = 5.0
    net.scores[0, :2, 3, :stray] = torch.tensor([0.0, 8.0])[:, None]
    assert segmenter(net).find_regions(picture.image) == []


def test_an_untrained_network_has_the_promised_shapes():
    scores, way, depth = SegmenterNet((8, 8, 8))(torch.zeros(2, 3, 128, 128))
    assert scores.shape == (2, len(CLASSES) + 1, 128, 128)
    assert way.shape == (2, 2, 128, 128) and depth.shape == (2, 128, 128)
