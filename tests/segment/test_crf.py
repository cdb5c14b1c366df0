"""DenseCRF: the mean field of the paper with its exact kernel, and edges where the picture has them."""

import math

import numpy as np
import pytest
import torch

from costars.segment.crf import CrfWeights, dense_crf


def chances(labels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(labels, height, width, generator=torch.Generator().manual_seed(seed)).softmax(dim=0)


def test_half_precision_around_it_changes_nothing():
    plain = dense_crf(chances(3, 12, 12), picture(12, 12))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dense_crf(chances(3, 12, 12), picture(12, 12)), plain)


def picture(height: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed))


def written_out(unary: np.ndarray, image: np.ndarray, weights: CrfWeights) -> np.ndarray:
    """The same with loops over pixels: normalised kernels without a diagonal, Potts compatibility."""
    labels, height, width = unary.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    scale = max(height, width) / weights.picture_px

    def kernel(sigma_px: float, sigma_colour: float | None) -> np.ndarray:
        out = np.zeros((len(pixels), len(pixels)))
        for i, (y, x) in enumerate(pixels):
            for j, (v, u) in enumerate(pixels):
                if i != j:
                    square = ((y - v) ** 2 + (x - u) ** 2) / sigma_px**2
                    if sigma_colour is not None:
                        square += float(((image[:, y, x] - image[:, v, u]) ** 2).sum()) / sigma_colour**2
                    out[i, j] = math.exp(-square / 2)
        root = 1 / np.sqrt(out.sum(axis=1))
        return root[:, None] * out * root

    both = weights.smooth_weight * kernel(max(1.0, weights.smooth_px * scale), None)
    both += weights.colour_weight * kernel(weights.colour_px * scale, weights.colour_levels)
    energy = np.log(unary.reshape(labels, -1).T)
    belief = np.exp(energy) / np.exp(energy).sum(axis=1, keepdims=True)
    for _ in range(weights.rounds):
        raised = np.exp(energy + both @ belief)
        belief = raised / raised.sum(axis=1, keepdims=True)
    return belief.T.reshape(unary.shape)


def test_it_equals_the_mean_field_written_out():
    weights = CrfWeights(picture_px=8, colour_px=4.0, smooth_px=2.0, colour_levels=60.0)
    unary, image = chances(3, 5, 7), picture(5, 7)
    expected = written_out(unary.double().numpy(), image.double().numpy(), weights)
    assert np.allclose(dense_crf(unary, image, weights), expected, atol=1e-4)


def test_chances_sum_to_one():
    out = dense_crf(chances(4, 12, 9), picture(12, 9))
    assert torch.allclose(out.sum(dim=0), torch.ones(12, 9), atol=1e-5)


def test_labels_have_no_order():
    unary, image = chances(3, 8, 8), picture(8, 8)
    assert torch.allclose(dense_crf(unary[[2, 0, 1]], image), dense_crf(unary, image)[[2, 0, 1]], atol=1e-5)


def test_a_ragged_guess_snaps_to_the_edge_of_the_picture():
    image = torch.full((3, 24, 24), 20)
    image[:, :, 13:] = 220
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(24, 24)
    truth[:, 13:] = 1
    guess = (0.5 + 0.25 * (truth * 2 - 1) + 0.3 * torch.randn(24, 24, generator=generator)).clamp(0.05, 0.95)
    assert ((guess > 0.5).float() != truth).float().mean() > 0.1
    out = dense_crf(torch.stack([1 - guess, guess]), image)
    assert torch.equal(out.argmax(dim=0).float(), truth)


def test_without_rounds_it_is_the_input():
    unary = chances(2, 6, 6)
    assert torch.allclose(dense_crf(unary, picture(6, 6), CrfWeights(rounds=0)), unary, atol=1e-5)


def test_a_picture_too_large_for_the_exact_kernel_is_refused():
    with pytest.raises(ValueError, match="picture of 129 x 128; the exact kernel takes at most 16384 pixels"):
        dense_crf(torch.ones(2, 128, 129), torch.zeros(3, 128, 129))
