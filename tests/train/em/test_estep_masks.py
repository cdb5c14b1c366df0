"""The masks of the E-step: disjoint, aligned with image edges, and never lost."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from costars.train.em.estep_masks import (
    EStepConfig,
    Evidence,
    compute_log_likelihoods,
    estimate_masks,
    mean_iou,
    propagate_maps,
)

CONFIG = EStepConfig(crf_size_px=32)
SIZE = (64, 48)


def draw_boxes(boxes: dict[str, tuple[int, int, int, int]]) -> tuple[Image.Image, dict[str, np.ndarray]]:
    """A white image with a box of each colour, and the masks of the boxes."""
    image, masks = Image.new("RGB", SIZE, "white"), {}
    for colour, (left, top, right, bottom) in boxes.items():
        image.paste(colour, (left, top, right, bottom))
        masks[colour] = np.zeros(SIZE[::-1], dtype=np.float32)
        masks[colour][top:bottom, left:right] = 1
    return image, masks


def blur(mask: np.ndarray, cells: tuple[int, int] = (6, 8)) -> torch.Tensor:
    """The mask as an attention map: coarse, with an offset everywhere."""
    coarse = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask)[None, None], cells)[0, 0]
    return 0.01 * coarse + 0.002


BOXES = {"red": (5, 6, 25, 43), "blue": (37, 10, 59, 45)}


def test_coarse_maps_become_masks_along_image_edges():
    image, truth = draw_boxes(BOXES)
    found = estimate_masks(Evidence({name: blur(mask) for name, mask in truth.items()}), image, CONFIG, {})
    assert list(found) == ["red", "blue"]
    assert all(mask.shape == SIZE[::-1] and set(np.unique(mask)) <= {0, 1} for mask in found.values())
    assert mean_iou([found[name] for name in truth], [truth[name] for name in truth]) > 0.85
    without = estimate_masks(Evidence({n: blur(m) for n, m in truth.items()}), Image.new("RGB", SIZE), CONFIG, {})
    assert mean_iou([without[n] for n in truth], [truth[n] for n in truth]) < 0.85


@given(st.integers(0, 2**31))
def test_masks_are_disjoint(seed):
    generator = torch.Generator().manual_seed(seed)
    maps = {name: torch.rand(4, 5, generator=generator) for name in "abc"}
    image = Image.fromarray(torch.randint(0, 256, (24, 30, 3), dtype=torch.uint8, generator=generator).numpy())
    found = estimate_masks(Evidence(maps), image, EStepConfig(crf_size_px=16), {})
    assert sum(found.values()).max() <= 1


def test_empty_mask_is_replaced_by_the_previous_one():
    image, truth = draw_boxes(BOXES)
    maps = {"red": blur(truth["red"]), "blue": torch.full((6, 8), 0.5)}
    found = estimate_masks(Evidence(maps), image, CONFIG, {"blue": truth["blue"]})
    assert np.array_equal(found["blue"], truth["blue"])
    assert estimate_masks(Evidence(maps), image, CONFIG, {})["blue"].shape == SIZE[::-1]


def test_mask_above_max_mask_fraction_is_empty_without_a_previous_one():
    maps = {"red": torch.zeros(6, 8), "blue": torch.zeros(6, 8)}
    maps["red"][:] = torch.linspace(0, 1, 8)
    found = estimate_masks(Evidence(maps), Image.new("RGB", SIZE), replace(CONFIG, max_mask_fraction=0.2), {})
    assert not any(mask.any() for mask in found.values())


def attention_within(regions: list[np.ndarray], cells: tuple[int, int] = (6, 8)) -> torch.Tensor:
    """Self-attention of cells to their own region, and a little to all cells."""
    shares = [torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(r)[None], cells).flatten() for r in regions]
    return sum((torch.outer(share, share) for share in shares), torch.full((48, 48), 0.01))


def test_errors_label_the_foreground_if_both_maps_are_equal():
    image, truth = draw_boxes(BOXES)
    chain_rules = blur(truth["red"] + truth["blue"])
    maps = {"red": chain_rules, "blue": chain_rules.clone()}
    errors = {name: 0.3 - 0.2 * blur(mask) / blur(mask).max() for name, mask in truth.items()}
    self_attention = attention_within([*truth.values(), 1 - truth["red"] - truth["blue"]])
    labelled = estimate_masks(Evidence(maps, self_attention, errors), image, CONFIG, {})
    assert mean_iou([labelled[name] for name in truth], [truth[name] for name in truth]) > 0.85
    for without_errors in (Evidence(maps), Evidence(maps, self_attention)):
        found = estimate_masks(without_errors, image, CONFIG, {})
        assert mean_iou([found[name] for name in truth], [truth[name] for name in truth]) < 0.6


def test_self_attention_extends_a_map_to_the_whole_figure():
    """The map covers the red feet of the figure only."""
    image, parts = draw_boxes({"blue": (16, 8, 48, 28), "red": (16, 28, 48, 40)})
    figure, maps = parts["blue"] + parts["red"], {"ana": blur(parts["red"])}
    (alone,) = estimate_masks(Evidence(maps), image, CONFIG, {}).values()
    (whole,) = estimate_masks(Evidence(maps, attention_within([figure, 1 - figure])), image, CONFIG, {}).values()
    assert mean_iou([alone], [figure]) < 0.5 < 0.85 < mean_iou([whole], [figure])


@given(st.integers(0, 2**31))
def test_propagated_cells_are_means_of_the_cells_they_attend_to(seed):
    generator = torch.Generator().manual_seed(seed)
    maps, self_attention = torch.rand(2, 12, 16, generator=generator), torch.rand(48, 48, generator=generator)
    coarse = torch.nn.functional.adaptive_avg_pool2d(maps, (6, 8))
    assert propagate_maps(maps, self_attention).shape == maps.shape
    assert torch.allclose(propagate_maps(coarse, torch.eye(48)), coarse)
    everywhere = propagate_maps(coarse, torch.ones(48, 48))
    assert torch.allclose(everywhere, coarse.mean(dim=(1, 2), keepdim=True).expand_as(coarse), atol=1e-5)


@given(st.integers(0, 2**31))
def test_log_likelihoods_are_relative_to_the_mean_over_concepts(seed):
    errors = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(seed))
    foreground = torch.ones(1, 6, 8)
    found = compute_log_likelihoods(errors, foreground, CONFIG)
    assert found.shape == errors.shape
    assert torch.allclose(found, compute_log_likelihoods(errors + 0.5, foreground, CONFIG), atol=1e-3)
    assert torch.allclose(found.sum(dim=0), torch.zeros(6, 8), atol=1e-3)


def test_errors_outside_the_foreground_are_ignored():
    errors, foreground = torch.zeros(2, 6, 8), torch.zeros(1, 6, 8)
    foreground[:, :, :4] = 1
    errors[0, :, :4], errors[0, :, 4:] = -0.1, 5  # the first concept is better in the foreground only
    assert bool((compute_log_likelihoods(errors, foreground, CONFIG)[0, :, :4] > 0).all())


def test_small_components_are_removed():
    image, truth = draw_boxes({"red": (5, 6, 25, 43), "blue": (50, 10, 52, 12)})
    chain_rules = truth["red"] + truth["blue"]
    maps = {"red": torch.from_numpy(chain_rules) * 0.01}
    (found,) = estimate_masks(Evidence(maps), image, EStepConfig(crf_size_px=64, min_piece_fraction=0.01), {}).values()
    assert found[:, 45:].max() == 0 and found[:, :30].max() == 1


def test_mean_iou_weights_all_pairs_equally():
    one, none = np.ones((4, 4), dtype=np.float32), np.zeros((4, 4), dtype=np.float32)
    half = one.copy()
    half[:2] = 0
    assert mean_iou([one, half], [one, one]) == pytest.approx(0.75)
    assert mean_iou([none], [one]) == 0
