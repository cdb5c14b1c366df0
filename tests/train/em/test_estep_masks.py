"""Masks from where words look: disjoint, on the picture's own edges, and never nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from costars.segment.thresholds import otsu_threshold
from costars.train.em.estep_masks import (
    EStepConfig,
    Evidence,
    compute_log_likelihoods,
    estimate_masks,
    mean_iou,
    propagate_maps,
)

HOW = EStepConfig(crf_size_px=32)
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
    found = estimate_masks(Evidence({name: blurred(mask) for name, mask in truth.items()}), image, HOW, {})
    assert list(found) == ["red", "blue"]
    assert all(mask.shape == SIZE[::-1] and set(np.unique(mask)) <= {0, 1} for mask in found.values())
    assert mean_iou([found[name] for name in truth], [truth[name] for name in truth]) > 0.85
    without = estimate_masks(Evidence({n: blurred(m) for n, m in truth.items()}), Image.new("RGB", SIZE), HOW, {})
    assert mean_iou([without[n] for n in truth], [truth[n] for n in truth]) < 0.85


@given(st.integers(0, 2**31))
def test_no_pixel_is_in_two_masks(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = {name: torch.rand(4, 5, generator=generator) for name in "abc"}
    image = Image.fromarray(torch.randint(0, 256, (24, 30, 3), dtype=torch.uint8, generator=generator).numpy())
    found = estimate_masks(Evidence(maps), image, EStepConfig(crf_size_px=16), {})
    assert sum(found.values()).max() <= 1


def test_a_concept_that_would_be_left_with_nothing_keeps_its_mask():
    image, truth = picture(BOXES)
    maps = {"red": blurred(truth["red"]), "blue": torch.full((6, 8), 0.5)}
    found = estimate_masks(Evidence(maps), image, HOW, {"blue": truth["blue"]})
    assert np.array_equal(found["blue"], truth["blue"])
    assert estimate_masks(Evidence(maps), image, HOW, {})["blue"].shape == SIZE[::-1]


def test_who_looks_everywhere_has_no_mask():
    """Where there is none from before either: a mask of all of the picture tells nothing."""
    maps = {"red": torch.zeros(6, 8), "blue": torch.zeros(6, 8)}
    maps["red"][:] = torch.linspace(0, 1, 8)
    found = estimate_masks(Evidence(maps), Image.new("RGB", SIZE), replace(HOW, max_mask_fraction=0.2), {})
    assert not any(mask.any() for mask in found.values())


def kin_of(regions: list[np.ndarray], cells: tuple[int, int] = (6, 8)) -> torch.Tensor:
    """Self-attention in which each cell attends to those of its own region, and a little to all."""
    shares = [torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(r)[None], cells).flatten() for r in regions]
    return sum((torch.outer(share, share) for share in shares), torch.full((48, 48), 0.01))


def test_errors_say_whose_a_figure_is_where_both_words_look_at_both():
    image, truth = picture(BOXES)
    both = blurred(truth["red"] + truth["blue"])
    maps = {"red": both, "blue": both.clone()}
    errors = {name: 0.3 - 0.2 * blurred(mask) / blurred(mask).max() for name, mask in truth.items()}
    kin = kin_of([*truth.values(), 1 - truth["red"] - truth["blue"]])
    told = estimate_masks(Evidence(maps, kin, errors), image, HOW, {})
    assert mean_iou([told[name] for name in truth], [truth[name] for name in truth]) > 0.85
    for untold in (Evidence(maps), Evidence(maps, kin)):
        found = estimate_masks(untold, image, HOW, {})
        assert mean_iou([found[name] for name in truth], [truth[name] for name in truth]) < 0.6


def test_what_no_word_looks_at_goes_with_what_attends_to_the_same():
    """Of a figure with red feet the word looks at the feet alone; the rest is kin."""
    image, parts = picture({"blue": (16, 8, 48, 28), "red": (16, 28, 48, 40)})
    figure, maps = parts["blue"] + parts["red"], {"ana": blurred(parts["red"])}
    (alone,) = estimate_masks(Evidence(maps), image, HOW, {}).values()
    (whole,) = estimate_masks(Evidence(maps, kin_of([figure, 1 - figure])), image, HOW, {}).values()
    assert mean_iou([alone], [figure]) < 0.5 < 0.85 < mean_iou([whole], [figure])


@given(st.integers(0, 2**31))
def test_cells_take_means_of_those_they_attend_to(seed):
    generator = torch.Generator().manual_seed(seed)
    maps, kin = torch.rand(2, 12, 16, generator=generator), torch.rand(48, 48, generator=generator)
    coarse = torch.nn.functional.adaptive_avg_pool2d(maps, (6, 8))
    assert propagate_maps(maps, kin).shape == maps.shape
    assert torch.allclose(propagate_maps(coarse, torch.eye(48)), coarse)
    everywhere = propagate_maps(coarse, torch.ones(48, 48))
    assert torch.allclose(everywhere, coarse.mean(dim=(1, 2), keepdim=True).expand_as(coarse), atol=1e-5)


@given(st.integers(0, 2**31))
def test_what_all_words_explain_alike_tells_nobody(seed):
    errors = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(seed))
    within = torch.ones(1, 6, 8)
    found = compute_log_likelihoods(errors, within, HOW)
    assert found.shape == errors.shape
    assert torch.allclose(found, compute_log_likelihoods(errors + 0.5, within, HOW), atol=1e-3)
    assert torch.allclose(found.sum(dim=0), torch.zeros(6, 8), atol=1e-3)


def test_errors_of_nobodys_cells_tell_nothing():
    errors, within = torch.zeros(2, 6, 8), torch.zeros(1, 6, 8)
    within[:, :, :4] = 1
    errors[0, :, :4], errors[0, :, 4:] = -0.1, 5  # the first explains what is somebody's, the other what is nobody's
    assert bool((compute_log_likelihoods(errors, within, HOW)[0, :, :4] > 0).all())


def test_crumbs_are_dropped():
    image, truth = picture({"red": (5, 6, 25, 43), "blue": (50, 10, 52, 12)})
    both = truth["red"] + truth["blue"]
    maps = {"red": torch.from_numpy(both) * 0.01}
    (found,) = estimate_masks(Evidence(maps), image, EStepConfig(crf_size_px=64, min_piece_fraction=0.01), {}).values()
    assert found[:, 45:].max() == 0 and found[:, :30].max() == 1


def test_otsu_parts_two_heaps():
    values = np.concatenate([np.full(300, 0.1), np.full(50, 0.9)]) + np.linspace(0, 0.01, 350)
    assert 0.1 < otsu_threshold(values) < 0.9


def test_mean_iou_counts_each_concept_alike():
    one, none = np.ones((4, 4), dtype=np.float32), np.zeros((4, 4), dtype=np.float32)
    half = one.copy()
    half[:2] = 0
    assert mean_iou([one, half], [one, one]) == pytest.approx(0.75)
    assert mean_iou([none], [one]) == 0
