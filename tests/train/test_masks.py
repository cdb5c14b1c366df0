"""Masks from where words look: disjoint, on the picture's own edges, and never nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from costars.segment.labels import otsu
from costars.train.masks import Estep, disjoint, likelihoods, mean_iou

HOW = Estep(grid_px=32)
SIZE = (64, 48)


def picture(boxes: dict[str, tuple[int, int, int, int]]) -> tuple[Image.Image, dict[str, np.ndarray]]:
    """A white picture with a coloured box for each name, and the masks of these."""
    image, masks = Image.new("RGB", SIZE, "white"), {}
    for colour, (left, top, right, bottom) in boxes.items():
        image.paste(colour, (left, top, right, bottom))
        masks[colour] = np.zeros(SIZE[::-1], dtype=np.float32)
        masks[colour][top:bottom, left:right] = 1
    return image, masks


def blurred(mask: np.ndarray, cells: tuple[int, int] = (6, 8)) -> torch.Tensor:
    """The mask as attention shows it: on few cells, with something everywhere."""
    coarse = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask)[None, None], cells)[0, 0]
    return 0.01 * coarse + 0.002


BOXES = {"red": (5, 6, 25, 43), "blue": (37, 10, 59, 45)}


def test_coarse_maps_come_out_as_masks_on_the_pictures_edges():
    image, truth = picture(BOXES)
    found = disjoint({name: blurred(mask) for name, mask in truth.items()}, image, HOW, {})
    assert list(found) == ["red", "blue"]
    assert all(mask.shape == SIZE[::-1] and set(np.unique(mask)) <= {0, 1} for mask in found.values())
    assert mean_iou([found[name] for name in truth], [truth[name] for name in truth]) > 0.85
    without = disjoint({n: blurred(m) for n, m in truth.items()}, Image.new("RGB", SIZE), HOW, {})
    assert mean_iou([without[n] for n in truth], [truth[n] for n in truth]) < 0.85


@given(st.integers(0, 2**31))
def test_no_pixel_is_in_two_masks(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = {name: torch.rand(4, 5, generator=generator) for name in "abc"}
    image = Image.fromarray(torch.randint(0, 256, (24, 30, 3), dtype=torch.uint8, generator=generator).numpy())
    found = disjoint(maps, image, Estep(grid_px=16), {})
    assert sum(found.values()).max() <= 1


def test_a_concept_that_would_be_left_with_nothing_keeps_its_mask():
    image, truth = picture(BOXES)
    maps = {"red": blurred(truth["red"]), "blue": torch.full((6, 8), 0.5)}
    found = disjoint(maps, image, HOW, {"blue": truth["blue"]})
    assert np.array_equal(found["blue"], truth["blue"])
    assert disjoint(maps, image, HOW, {})["blue"].shape == SIZE[::-1]


def test_errors_say_whose_a_figure_is_where_both_words_look_at_both():
    image, truth = picture(BOXES)
    both = blurred(truth["red"] + truth["blue"])
    maps = {"red": both, "blue": both.clone()}
    errors = {name: 0.3 - 0.2 * blurred(mask) / blurred(mask).max() for name, mask in truth.items()}
    told = disjoint(maps, image, HOW, {}, errors)
    assert mean_iou([told[name] for name in truth], [truth[name] for name in truth]) > 0.85
    untold = disjoint(maps, image, HOW, {})
    assert mean_iou([untold[name] for name in truth], [truth[name] for name in truth]) < 0.6


@given(st.integers(0, 2**31))
def test_the_likeliest_of_each_cell_is_held_against_itself(seed):
    errors = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(seed))
    found = likelihoods(errors, HOW)
    assert found.shape == errors.shape and torch.equal(found.amax(dim=0), torch.ones(6, 8)) and bool((found >= 0).all())
    assert torch.allclose(found, likelihoods(errors + 0.5, HOW), atol=1e-3)  # what all explain alike tells nobody


def test_crumbs_are_dropped():
    image, truth = picture({"red": (5, 6, 25, 43), "blue": (50, 10, 52, 12)})
    both = truth["red"] + truth["blue"]
    maps = {"red": torch.from_numpy(both) * 0.01}
    (found,) = disjoint(maps, image, Estep(grid_px=64, smallest=0.01), {}).values()
    assert found[:, 45:].max() == 0 and found[:, :30].max() == 1


def test_otsu_parts_two_heaps():
    values = np.concatenate([np.full(300, 0.1), np.full(50, 0.9)]) + np.linspace(0, 0.01, 350)
    assert 0.1 < otsu(values) < 0.9


def test_mean_iou_counts_each_concept_alike():
    one, none = np.ones((4, 4), dtype=np.float32), np.zeros((4, 4), dtype=np.float32)
    half = one.copy()
    half[:2] = 0
    assert mean_iou([one, half], [one, one]) == pytest.approx(0.75)
    assert mean_iou([none], [one]) == 0
