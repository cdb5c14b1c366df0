"""Attention maps become one region for each figure."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from costars.segment.cross_attention import AttentionSegmenter, split_instances
from costars.segment.overlap import mask_iou
from costars.types import Layout, RegionError

COLOURS = [(210, 40, 40), (40, 60, 200), (60, 180, 60)]


def scene(figures: list[tuple[str, tuple[int, int, int, int]]], size: int = 64) -> tuple[Layout, list[np.ndarray]]:
    """A picture of coloured boxes (left, top, right, bottom), and blurred 8 x 8 maps of their words."""
    image = np.full((size, size, 3), 235, dtype=np.uint8)
    attention: dict[str, np.ndarray] = {}
    truth = []
    for i, (word, (left, top, right, bottom)) in enumerate(figures):
        mask = np.zeros((size, size), dtype=np.float32)
        mask[top:bottom, left:right] = 1
        image[mask > 0] = COLOURS[i]
        truth.append(mask)
        attention[word] = attention.get(word, 0) + mask
    cell = size // 8
    maps = {
        f"{word} 0": ndimage.gaussian_filter(m, 4).reshape(8, cell, 8, cell).mean(axis=(1, 3)).astype(np.float32) * 0.02
        for word, m in attention.items()
    }
    return Layout(Image.fromarray(image), torch.zeros(1), maps, "", 0), truth


def test_two_figures_of_one_class_are_two_regions():
    figures = [("woman", (4, 8, 20, 56)), ("woman", (44, 8, 60, 50)), ("dog", (26, 34, 40, 60))]
    layout, truth = scene(figures)
    regions = AttentionSegmenter()(layout, ["woman", "dog", "woman"])
    assert [r.class_name for r in regions] == ["woman", "woman", "dog"]
    for region, mask in zip(regions, truth, strict=True):
        assert region.mask.shape == (64, 64) and region.mask.dtype == np.float32
        assert mask_iou(region.mask, mask) > 0.8
        assert 0.3 < region.score <= 1


def test_lower_figures_are_nearer():
    layout, _ = scene([("man", (4, 8, 24, 44)), ("dog", (40, 30, 60, 62))])
    depths = {r.class_name: r.depth for r in AttentionSegmenter()(layout, ["man", "dog"])}
    assert depths == {"dog": 0, "man": 1}


def test_regions_have_the_size_of_the_image(monkeypatch):
    monkeypatch.setattr("costars.segment.cross_attention.GRID_PX", 32)  # the kernel of 128 x 128 px takes seconds
    layout, truth = scene([("man", (40, 40, 120, 180))], size=256)
    (region,) = AttentionSegmenter()(Layout(layout.image, layout.latents, layout.maps, "", 0), ["man"])
    assert region.mask.shape == (256, 256)
    assert mask_iou(region.mask, truth[0]) > 0.8


def test_class_without_a_map_is_rejected():
    layout, _ = scene([("man", (4, 8, 24, 44))])
    with pytest.raises(RegionError, match="no attention map for 'cat'; it has man 0"):
        AttentionSegmenter()(layout, ["cat"])


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([0.0, 0.01, 0.05]))
def test_instances_are_disjoint_large_and_ordered(seed, count, smallest):
    noise = np.random.default_rng(seed).standard_normal((24, 24))
    mask = ndimage.gaussian_filter(noise, 2) > 0.05
    parts = split_instances(mask, count, smallest)
    assert len(parts) <= count
    assert all(part.any() and part.mean() >= smallest for part in parts)
    total = sum(part.astype(int) for part in parts) if parts else np.zeros((24, 24))
    assert total.max() <= 1
    assert not (total.astype(bool) & ~mask).any()
    middles = [np.nonzero(part)[1].mean() for part in parts]
    assert middles == sorted(middles)


def test_touching_figures_are_cut_between_their_centres():
    mask = np.zeros((20, 40), dtype=bool)
    mask[4:18, 4:18] = mask[4:18, 20:36] = mask[15:17, 18:20] = True
    left, right = split_instances(mask, 2, 0.01)
    assert np.array_equal(left | right, mask)
    assert left[:, 22:].sum() == 0 and right[:, :17].sum() == 0


def test_speck_is_not_a_figure():
    mask = np.zeros((20, 20), dtype=bool)
    mask[3, 3] = True
    assert split_instances(mask, 1, 0.01) == []
