"""Aspect-ratio buckets: their sizes, and cropping images and masks to them."""

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from costars.errors import TrainError
from costars.train.data.aspect_buckets import (
    bucket_sizes,
    crop_mask_to_bucket,
    crop_to_bucket,
    group_by_bucket,
    nearest_size,
    uncrop_mask,
)
from costars.train.data.images import Example

sides = st.integers(1, 400)
grids = st.tuples(st.integers(1, 16), st.sampled_from([8, 32, 64]), st.floats(1, 4))


def make_example(width: int, height: int, colour: str = "red", masked: bool = True) -> Example:
    mask = np.ones((height, width), dtype=np.float32) if masked else None
    return Example(Image.new("RGB", (width, height), colour), "a woman", mask, "a.png")


@given(grids)
def test_bucket_sizes_are_maximal_within_area_and_aspect_ratio(grid):
    count, step, max_aspect_ratio = grid
    size = count * step
    sizes = bucket_sizes(size, step, max_aspect_ratio)
    assert (size, size) in sizes and len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert width % step == height % step == 0 and min(width, height) > 0
        assert width * height <= size**2 and max(width, height) <= max_aspect_ratio * min(width, height)
        assert (height, width) in sizes
        assert (width + step) * height > size**2 or width * (height + step) > size**2  # no side could grow
    assert list(sizes) == sorted(sizes, key=lambda s: (s[0] / s[1], s))


def test_bucket_sizes_of_1024_include_those_of_sdxl():
    sizes = bucket_sizes(1024, 64)
    assert {(1024, 1024), (1152, 896), (896, 1152), (832, 1216), (1344, 768)} <= set(sizes)
    assert bucket_sizes(64, 64) == ((64, 64),)


@pytest.mark.parametrize(("numbers", "message"), [((100, 64), "e.g. 128"), ((0, 64), "e.g. 64"), ((64, 0), "step 0")])
def test_invalid_bucket_numbers_are_rejected(numbers, message):
    with pytest.raises(TrainError, match=message):
        bucket_sizes(*numbers)
    with pytest.raises(TrainError, match="max_aspect_ratio"):
        bucket_sizes(64, 64, 0.5)


@given(st.tuples(sides, sides))
def test_nearest_size_has_the_nearest_aspect_ratio(size):
    sizes = bucket_sizes(512, 64)
    nearest = nearest_size(size, sizes)
    gaps = {s: abs(log(s[0] / s[1]) - log(size[0] / size[1])) for s in sizes}
    assert gaps[nearest] == min(gaps.values())
    same = [s[0] * s[1] for s in sizes if gaps[s] == gaps[nearest]]
    assert nearest[0] * nearest[1] == max(same)


@given(sides, sides, st.sampled_from(bucket_sizes(256, 32)))
def test_cropped_image_and_mask_have_no_empty_border(width, height, size):
    made, (high, wide, top, left) = crop_to_bucket(make_example(width, height), size)
    assert made.image.size == size and made.mask.shape == size[::-1] and made.mask.dtype == np.float32
    assert set(made.image.get_flattened_data()) == {(255, 0, 0)}
    assert made.mask.min() > 1 - 1e-5 and made.mask.max() <= 1
    assert (high, wide) == (height, width) and min(top, left) >= 0 and 0 in (top, left)
    assert (made.caption, made.name) == ("a woman", "a.png")


@given(sides)
def test_square_image_is_not_cropped_in_the_square_bucket(side):
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    made, numbers = crop_to_bucket(Example(image), (64, 64))
    assert numbers == (side, side, 0, 0) and made.mask is None
    assert made.image.tobytes() == image.resize((64, 64), Image.Resampling.LANCZOS).tobytes()


def test_center_is_kept_and_the_crop_is_in_px_of_the_scaled_image():
    pixels = np.zeros((100, 300, 3), dtype=np.uint8)
    pixels[:, 100:200] = 255
    made, numbers = crop_to_bucket(Example(Image.fromarray(pixels), mask=pixels[..., 0] / np.float32(255)), (200, 200))
    assert numbers == (100, 300, 0, 200)
    assert np.asarray(made.image)[:, 5:-5].min() > 240 and made.mask[:, 5:-5].min() > 0.99


@given(sides, sides, st.integers(0, 99))
def test_cropped_mask_stays_in_zero_to_one(width, height, seed):
    mask = np.random.default_rng(seed).integers(0, 2, (height, width)).astype(np.float32)
    made, _ = crop_to_bucket(Example(Image.new("RGB", (width, height)), mask=mask), (96, 64))
    assert made.mask.min() >= 0 and made.mask.max() <= 1


def test_narrow_image_is_cropped_before_it_is_scaled():
    made, numbers = crop_to_bucket(make_example(60_000, 2, masked=False), (1024, 1024))
    assert made.image.size == (1024, 1024) and numbers == (2, 60_000, 0, 15_359_488)


def test_group_by_bucket_keeps_the_order():
    sizes = bucket_sizes(256, 64)
    examples = [make_example(*size) for size in ((50, 50), (100, 50), (60, 60), (50, 100), (200, 101))]
    buckets = group_by_bucket(examples, sizes)
    assert buckets[(256, 256)] == [0, 2]
    assert sorted(i for found in buckets.values() for i in found) == [0, 1, 2, 3, 4]
    assert all(found == sorted(found) for found in buckets.values()) and group_by_bucket([], sizes) == {}


@given(st.integers(20, 200), st.integers(20, 200))
def test_uncrop_mask_restores_the_position(width, height):
    whole = np.ones((height, width), dtype=np.float32)
    back = uncrop_mask(crop_mask_to_bucket(whole, (64, 48)), (width, height))
    assert back.shape == whole.shape and set(np.unique(back)) <= {0, 1}
    assert back.mean() == pytest.approx(min(width * 48, height * 64) / max(width * 48, height * 64), abs=0.06)
    assert back[height // 2, width // 2] == 1
