"""Encoding examples in buckets and drawing batches of them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from costars.errors import TrainError
from costars.train.data.images import Example
from costars.train.data.latents import Batch, LatentDataset, encode_examples


def make_example(width: int, height: int, mask: np.ndarray | None = None) -> Example:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Example(Image.fromarray(pixels), "a woman", mask, "a.png")


def make_bucket(first: int, count: int) -> Batch:
    indices = range(first, first + count)
    latents = torch.tensor([float(i) for i in indices]).view(count, 1, 1, 1)
    return Batch(latents, tuple(indices), torch.zeros(count, 6))


def test_images_of_one_shape_share_a_bucket(small):
    examples = [make_example(64, 64), make_example(200, 50), make_example(100, 100)]
    found = encode_examples(small, examples, max_aspect_ratio=4.0)
    by_shape = {tuple(bucket.latents.shape[1:]): bucket.caption_indices for bucket in found.buckets}
    assert by_shape[4, 8, 8] == (0, 2) and sorted(i for indices in by_shape.values() for i in indices) == [0, 1, 2]


def test_flip_augmentation_adds_mirrored_images(small):
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[:, :16] = 1
    (bucket,) = encode_examples(small, [make_example(64, 64, mask)], flip_augmentation=True).buckets
    assert bucket.caption_indices == (0, 0) and bucket.masks.shape == (2, 1, 64, 64)
    assert torch.equal(bucket.masks[1], bucket.masks[0].flip(-1)) and not torch.equal(*bucket.latents)


def test_size_ids_hold_the_original_size_and_crop(small):
    example = make_example(128, 64)
    (bucket,) = encode_examples(small, [example], max_aspect_ratio=1.0).buckets
    assert bucket.size_ids.tolist() == [[64, 128, 0, 32, 64, 64]]
    (bucket,) = encode_examples(small, [example], max_aspect_ratio=1.0, size_conditioning=False).buckets
    assert bucket.size_ids.tolist() == [[64, 64, 0, 0, 64, 64]]


def test_size_ids_are_not_rounded_in_half_precision(small):
    """bfloat16 has no odd numbers above 256."""
    half = replace(small, dtype=torch.bfloat16)
    (bucket,) = encode_examples(half, [make_example(1023, 769)], max_aspect_ratio=1.0).buckets
    assert bucket.size_ids.dtype == torch.float32 and bucket.size_ids[0, :2].tolist() == [769, 1023]


def test_examples_without_a_mask_get_ones_if_others_have_one(small):
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[:32] = 1
    (bucket,) = encode_examples(small, [make_example(64, 64, mask), make_example(64, 64)]).buckets
    assert bucket.masks.mean(dim=(1, 2, 3)).tolist() == [0.5, 1.0]
    assert encode_examples(small, [make_example(64, 64)]).buckets[0].masks is None


def test_mask_that_is_cropped_away_is_rejected(small):
    mask = np.zeros((50, 200), dtype=np.float32)
    mask[:, :20] = 1
    with pytest.raises(TrainError, match=r"a\.png: its mask is empty after the crop to 64 x 64 px"):
        encode_examples(small, [make_example(200, 50, mask)], max_aspect_ratio=1.0)


def test_batches_are_of_one_bucket_and_all_images_equally_likely():
    dataset, drawn = LatentDataset([make_bucket(0, 1), make_bucket(1, 3)]), Counter[int]()
    for seed in range(400):
        batch = dataset.sample_batch(4, torch.Generator().manual_seed(seed))
        assert {*batch.caption_indices} <= {0} or {*batch.caption_indices} <= {1, 2, 3}
        assert batch.latents.flatten().tolist() == list(batch.caption_indices) and batch.masks is None
        drawn.update(batch.caption_indices)
    assert all(drawn[i] == pytest.approx(400, rel=0.25) for i in range(4))
