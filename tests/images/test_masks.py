"""Mask images become values in [0, 1]; coloured or transparent images are rejected."""

import numpy as np
import pytest
from PIL import Image

from costars.images.masks import same_aspect_ratio, to_grey_levels


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.array([[0, 51, 255]], np.uint8)), [0, 0.2, 1]),
        (Image.fromarray(np.array([[0, 13107, 65535]], np.uint16)), [0, 0.2, 1]),
        (Image.fromarray(np.array([[False, True]])), [0, 1]),
        (Image.new("RGB", (2, 1), (51, 51, 51)), [0.2, 0.2]),
        (Image.new("RGBA", (1, 1), "white"), [1]),
    ],
    ids=["8 bit", "16 bit", "1 bit", "RGB", "RGBA"],
)
def test_grey_images_of_any_mode(image, expected):
    levels = to_grey_levels(image)
    assert levels.dtype == np.float32
    np.testing.assert_allclose(levels, [expected], rtol=1e-6)


@pytest.mark.parametrize("image", [Image.new("RGB", (1, 1), "red"), Image.new("RGBA", (1, 1), (255, 255, 255, 254))])
def test_colours_and_transparency_are_rejected(image):
    with pytest.raises(ValueError, match="has colours or an alpha channel"):
        to_grey_levels(image)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((512, 512), (64, 64), True),
        ((768, 512), (3, 2), True),
        ((1000, 667), (768, 512), True),
        ((512, 768), (768, 512), False),
        ((512, 500), (512, 512), False),
    ],
)
def test_same_aspect_ratio(one, other, same):
    assert same_aspect_ratio(one, other) is same
