"""DenseCRF equals mean-field inference written with loops, and labels follow image edges."""

import math

import numpy as np
import pytest
import torch

from costars.segment.crf import CrfWeights, dense_crf


def random_probabilities(labels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(labels, height, width, generator=torch.Generator().manual_seed(seed)).softmax(dim=0)


def test_autocast_does_not_change_the_result():
    plain = dense_crf(random_probabilities(3, 12, 12), random_image(12, 12))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dense_crf(random_probabilities(3, 12, 12), random_image(12, 12)), plain)


def random_image(height: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed))


def reference_crf(unary: np.ndarray, image: np.ndarray, weights: CrfWeights) -> np.ndarray:
    """Mean field with loops over pixels: normalised kernels with zero diagonal, Potts compatibility."""
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

    kernels = weights.smooth_weight * kernel(max(1.0, weights.smooth_px * scale), None)
    kernels += weights.colour_weight * kernel(weights.colour_px * scale, weights.colour_levels)
    energy = np.log(unary.reshape(labels, -1).T)
    belief = np.exp(energy) / np.exp(energy).sum(axis=1, keepdims=True)
    for _ in range(weights.rounds):
        updated = np.exp(energy + kernels @ belief)
        belief = updated / updated.sum(axis=1, keepdims=True)
    return belief.T.reshape(unary.shape)


def test_result_equals_the_reference():
    weights = CrfWeights(picture_px=8, colour_px=4.0, smooth_px=2.0, colour_levels=60.0)
    unary, image = random_probabilities(3, 5, 7), random_image(5, 7)
    expected = reference_crf(unary.double().numpy(), image.double().numpy(), weights)
    assert np.allclose(dense_crf(unary, image, weights), expected, atol=1e-4)


def test_probabilities_sum_to_one():
    out = dense_crf(random_probabilities(4, 12, 9), random_image(12, 9))
    assert torch.allclose(out.sum(dim=0), torch.ones(12, 9), atol=1e-5)


def test_result_is_equivariant_to_label_order():
    unary, image = random_probabilities(3, 8, 8), random_image(8, 8)
    assert torch.allclose(dense_crf(unary[[2, 0, 1]], image), dense_crf(unary, image)[[2, 0, 1]], atol=1e-5)


def test_noisy_labels_snap_to_the_image_edge():
    image = torch.full((3, 24, 24), 20)
    image[:, :, 13:] = 220
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(24, 24)
    truth[:, 13:] = 1
    guess = (0.5 + 0.25 * (truth * 2 - 1) + 0.3 * torch.randn(24, 24, generator=generator)).clamp(0.05, 0.95)
    assert ((guess > 0.5).float() != truth).float().mean() > 0.1
    out = dense_crf(torch.stack([1 - guess, guess]), image)
    assert torch.equal(out.argmax(dim=0).float(), truth)


def test_zero_rounds_return_the_input():
    unary = random_probabilities(2, 6, 6)
    assert torch.allclose(dense_crf(unary, random_image(6, 6), CrfWeights(rounds=0)), unary, atol=1e-5)


def test_everything_is_computed_on_the_device_of_the_image():
    unary, image = random_probabilities(3, 8, 8), random_image(8, 8)
    assert dense_crf(unary.to("meta"), image.to("meta")).device.type == "meta"
    if torch.cuda.is_available():
        assert torch.allclose(dense_crf(unary.cuda(), image.cuda()).cpu(), dense_crf(unary, image), atol=1e-5)


def test_too_large_image_is_rejected():
    with pytest.raises(ValueError, match=r"image of 129 x 128 px is too large for the exact kernel"):
        dense_crf(torch.ones(2, 128, 129), torch.zeros(3, 128, 129))
