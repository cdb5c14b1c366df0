"""The segmenter's training data: augmentation and empty places."""

import torch

from costars_world.training.segmenter import augment, render_empty_place


def test_augmentation_changes_images_reproducibly():
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    once = augment(images.clone(), torch.Generator().manual_seed(0))
    again = augment(images.clone(), torch.Generator().manual_seed(0))
    assert once.shape == images.shape and torch.equal(once, again) and not torch.allclose(once, images)


def test_empty_places_are_reproducible_pictures():
    assert render_empty_place(3).shape == (128, 128, 3)
    assert (render_empty_place(3) == render_empty_place(3)).all() and (
        render_empty_place(3) != render_empty_place(4)
    ).any()
