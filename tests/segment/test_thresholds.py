"""Score maps become label probabilities by their own thresholds."""

import numpy as np
import pytest
import torch

from costars.segment.thresholds import compute_soft_labels, min_max_normalize, otsu_threshold


def two_levels(low: float, high: float) -> torch.Tensor:
    """A map whose left half is low and whose right half is high."""
    scores = torch.full((1, 8, 8), low)
    scores[:, :, 4:] = high
    return scores


def test_maps_are_scaled_to_unit_range():
    scaled = min_max_normalize(torch.cat([two_levels(-3, 5), two_levels(0.2, 0.3)]))
    assert torch.allclose(scaled.amin(dim=(1, 2)), torch.zeros(2)) and torch.allclose(
        scaled.amax(dim=(1, 2)), torch.ones(2)
    )


def test_constant_map_stays_finite():
    assert torch.equal(min_max_normalize(torch.ones(1, 4, 4)), torch.zeros(1, 4, 4))


def test_otsu_threshold_separates_two_levels():
    values = np.concatenate([np.random.default_rng(0).normal(0.2, 0.03, 300), np.full(100, 0.8)])
    assert 0.25 < otsu_threshold(values) < 0.8


def test_labels_are_probabilities_with_background_first():
    labels = compute_soft_labels(two_levels(0.1, 0.9))
    assert labels.shape == (2, 8, 8) and torch.allclose(labels.sum(dim=0), torch.ones(8, 8))
    assert (labels.argmax(dim=0)[:, :4] == 0).all() and (labels.argmax(dim=0)[:, 4:] == 1).all()


@pytest.mark.parametrize("softness", [0.02, 0.3])
def test_smaller_softness_gives_sharper_labels(softness):
    sharp = compute_soft_labels(two_levels(0.1, 0.9), 0.1)[1, 0, -1]
    assert (compute_soft_labels(two_levels(0.1, 0.9), softness)[1, 0, -1] > sharp) == (softness < 0.1)
