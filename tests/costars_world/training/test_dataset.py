"""Rendered pictures are written in chunks and read back."""

import numpy as np
import pytest

from costars_world.render.identity import CLASSES
from costars_world.render.world import sample_picture
from costars_world.training import dataset


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK_SIZE", 4)
    assert list(dataset.render(tmp_path, 8, workers=1)) == [0, 4, 8]
    return tmp_path


def test_dataset_holds_the_rendered_pictures(folder):
    data = dataset.load(folder, 8)
    assert len(data) == 8 and data.images.shape == (8, 128, 128, 3)
    for i in range(8):
        picture = sample_picture(dataset.TRAIN_SEED + i)
        assert data.captions[i] == picture.caption and np.array_equal(data.images[i], np.asarray(picture.image))
        for k, figure in enumerate(picture.figures):
            assert np.array_equal(data.labels[i] == k + 1, figure.visible_mask)
            assert CLASSES[data.classes[i, k]] == figure.identity.class_name and data.depths[i, k] == figure.depth
        assert (data.classes[i, len(picture.figures) :] == -1).all()


def test_only_missing_chunks_are_rendered(folder):
    dataset.chunk_path(folder, 4).unlink()
    assert list(dataset.render(folder, 8, workers=1)) == [4, 8]
    assert list(dataset.render(folder, 8, workers=1)) == [8]


def test_images_and_captions_load_alone(folder):
    data = dataset.load(folder, 8)
    assert np.array_equal(dataset.load_images(folder, 4), data.images[4:])
    assert dataset.load_captions(folder, 8) == data.captions
