"""Collecting the images that several subjects share."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from costars.errors import TrainError
from costars.train.em.group_images import collect_group_images, uncovered_mask


def test_images_have_the_names_and_masks_of_their_concepts(data):
    one, two = collect_group_images(data.pair())
    assert (one.names, two.names) == (("ana", "rex"), ("ana",))
    assert np.array_equal(one.given_masks["rex"], data.half_mask(left=False)) and "rex" not in two.given_masks


def test_background_is_last_and_gets_the_uncovered_pixels(data):
    one, two = collect_group_images(data.pair_in_meadow())
    assert (one.names, one.foreground, one.background) == (("ana", "rex", "m"), ("ana", "rex"), "m")
    assert np.array_equal(sum(one.given_masks.values()), np.ones((64, 64))) and one.given_masks["m"][:, 48:].all()
    assert (two.names, two.background) == (("ana",), "")


def test_uncovered_mask_without_masks_is_the_whole_image():
    assert np.array_equal(uncovered_mask([], (3, 2)), np.ones((2, 3)))


def test_two_backgrounds_in_one_image_are_rejected(data):
    meadow, ana, rex = data.pair_in_meadow()
    with pytest.raises(TrainError, match=r"one\.png: two backgrounds, m and hill; name one of them in its caption"):
        collect_group_images((meadow, ana, rex, replace(meadow, name="hill")))


def test_different_images_with_the_same_name_are_rejected(data):
    ana, rex = data.pair()
    other = replace(rex, examples=[replace(rex.examples[0], image=Image.new("RGB", (64, 64)))])
    with pytest.raises(TrainError, match=r"two different images have the name 'one\.png'; rename one"):
        collect_group_images((ana, other))
