"""Mask images of any mode become values in [0, 1]; coloured ones are rejected."""

import numpy as np
import pytest
from PIL import Image

from costars.images.masks import ALPHA_IS_MASK, ON_BLACK, read_levels, same_aspect_ratio, to_grey_levels


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


def paint(mode, *pixels):
    """An image of one row."""
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


PALETTE = paint("RGBA", (255, 0, 0, 0), (255, 0, 0, 255)).quantize(4)


@pytest.mark.parametrize(
    ("image", "expected", "how"),
    [
        (paint("RGBA", (255, 255, 255, 0), (255, 255, 255, 51), (255, 255, 255, 255)), [0, 0.2, 1], ALPHA_IS_MASK),
        (paint("RGBA", (7, 90, 3, 0), (0, 0, 0, 255)), [0, 1], ALPHA_IS_MASK),
        (paint("RGBA", (0, 0, 0, 0), (255, 0, 0, 255)), [0, 1], ALPHA_IS_MASK),
        (paint("LA", (0, 0), (9, 255)), [0, 1], ALPHA_IS_MASK),
        (PALETTE, [0, 1], ALPHA_IS_MASK),
        (paint("RGBA", (255, 255, 255, 0), (0, 0, 0, 255), (255, 255, 255, 51)), [0, 0, 0.2], ON_BLACK),
        (paint("LA", (255, 0), (51, 255), (255, 255)), [0, 0.2, 1], ON_BLACK),
        (paint("RGBA", (0, 0, 0, 255), (255, 255, 255, 255)), [0, 1], ""),
        (paint("L", 0, 51).convert("P"), [0, 0.2], ""),
    ],
)
def test_transparent_masks_are_their_alpha_or_lie_on_black(image, expected, how):
    levels, told = read_levels(image)
    np.testing.assert_allclose(levels, [expected], atol=1e-6)
    assert told == how


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (Image.new("RGB", (1, 1), "red"), "has colours"),
        (paint("RGBA", (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 0, 0)), "has colours"),
        (Image.new("F", (1, 1)), "the pixel format F"),
        (Image.new("CMYK", (1, 1)), "the pixel format CMYK"),
    ],
)
def test_colours_and_formats_without_a_white_are_rejected(image, why):
    with pytest.raises(ValueError, match=why):
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
