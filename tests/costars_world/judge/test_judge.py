"""The judge: crops, output columns, embeddings and weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from costars.errors import ModelError
from costars.types import RegionError
from costars_world.judge.judge import ATTRIBUTE_COLUMNS, JUDGE_WEIGHTS, NUM_SCORES, crop_figure, load_judge
from costars_world.render.identity import identity_from_seed
from costars_world.render.portraits import draw_portraits
from costars_world.render.world import sample_picture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def judge():
    return load_judge(JUDGE_WEIGHTS, CPU)


def test_embeddings_of_one_identity_are_closer_than_of_two(judge):
    def embed(seed):
        pictures = draw_portraits(identity_from_seed(seed, "woman"), 3, seed)
        return judge.embed([(p.image, p.figures[0].visible_mask.astype(np.float32)) for p in pictures])

    one, other = embed(123_456), embed(654_321)
    assert torch.allclose(one.norm(dim=1), torch.ones(3), atol=1e-5)
    assert (one @ one.T).min() > (one @ other.T).max()


def test_crop_does_not_depend_on_position_or_background():
    picture = sample_picture(3, count=1)
    mask = picture.figures[0].visible_mask.astype(np.float32)
    image = np.asarray(picture.image)
    wide, moved = np.full((128, 200, 3), 40, np.uint8), np.zeros((128, 200), np.float32)
    wide[:, 60:188], moved[:, 60:188] = np.where(mask[..., None] > 0, image, 200), mask
    assert np.array_equal(crop_figure(picture.image, mask)[..., 3], crop_figure(Image.fromarray(wide), moved)[..., 3])
    one, other = crop_figure(picture.image, mask).astype(int), crop_figure(Image.fromarray(wide), moved).astype(int)
    inside = one[..., 3] == 255
    assert np.array_equal(one[inside], other[inside])


def test_figure_at_the_edge_is_padded_with_grey():
    mask = np.zeros((128, 128), np.float32)
    mask[20:120, 0:20] = 1
    cut = crop_figure(Image.new("RGB", (128, 128), (10, 200, 30)), mask)
    assert cut.shape == (64, 64, 4)
    assert tuple(cut[0, 0]) == (128, 128, 128, 0)
    assert tuple(cut[32, 32]) == (10, 200, 30, 255)


def test_empty_mask_is_rejected():
    with pytest.raises(RegionError, match="the mask of the figure is empty"):
        crop_figure(Image.new("RGB", (128, 128)), np.zeros((128, 128), np.float32))


def test_attribute_columns_cover_every_score_once():
    taken = [i for columns in ATTRIBUTE_COLUMNS.values() for i in range(columns.start, columns.stop)]
    assert taken == list(range(5, NUM_SCORES))


def test_damaged_weights_are_rejected(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(ModelError, match="judge"):
        load_judge(path, CPU)
