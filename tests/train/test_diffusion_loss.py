"""The error of the predicted noise against sums done by hand and by diffusers, and words that look elsewhere."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from costars.model.predict import NoiseSchedule
from costars.train.diffusion_loss import cell_weights, noise_errors, max_normalized, attention_leak

SHAPE = (3, 4, 6, 8)
TEXT = torch.zeros(3, 5, 7)


def scheduler(prediction: str) -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction)


class Unet:
    """Predicts these numbers, and remembers what it was asked."""

    def __init__(self, answer: torch.Tensor) -> None:
        self.answer = answer

    def __call__(self, noisy, t, tokens, added_cond_kwargs):
        self.noisy, self.t, self.tokens, self.added = noisy, t, tokens, added_cond_kwargs
        return SimpleNamespace(sample=self.answer)


def drawn(seed: int = 0):
    """What the generator gives: timesteps, then noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, (3,), generator=generator), torch.randn(SHAPE, generator=generator), generator


@pytest.fixture
def latents():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def answer():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(8))


def errors(unet, levels, latents, text=(TEXT, None), **options):
    return noise_errors(unet, levels, latents, text, torch.ones(1, 6), torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_error_is_that_of_diffusers_noise_or_velocity(latents, answer, prediction):
    theirs, unet = scheduler(prediction), Unet(answer)
    levels = NoiseSchedule.from_scheduler(theirs)
    t, noise, _ = drawn()
    target = noise if prediction == "epsilon" else theirs.get_velocity(latents, noise, t)
    found = errors(unet, levels, latents, gamma=None)
    assert levels.velocity == (prediction == "v_prediction") and found.shape == (3,)
    assert torch.equal(unet.t, t) and unet.tokens is TEXT and unet.added is None
    assert torch.allclose(unet.noisy, theirs.add_noise(latents, noise, t), atol=1e-5)
    assert torch.allclose(found, (answer - target).square().mean(dim=(1, 2, 3)), atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weighs_each_noise_level_as_the_paper_says(latents, answer, prediction):
    """min(snr, gamma) / snr of the noise, / (snr + 1) of the velocity (as diffusers' training scripts)."""
    theirs = scheduler(prediction)
    t, _, _ = drawn()
    snr = compute_snr(theirs, t)
    assert (snr > 5).any() and (snr < 5).any()
    weight = snr.clamp(max=5.0) / (snr if prediction == "epsilon" else snr + 1)
    levels = NoiseSchedule.from_scheduler(theirs)
    plain, weighed = (errors(Unet(answer), levels, latents, gamma=gamma) for gamma in (None, 5.0))
    assert torch.allclose(weighed, plain * weight, rtol=1e-4)


def test_only_cells_with_weight_count(latents, answer):
    levels, weights = NoiseSchedule.from_scheduler(scheduler("epsilon")), torch.zeros(3, 1, 6, 8)
    weights[:, :, :3] = 2
    changed = answer.clone()
    changed[:, :, 3:] += 100
    first, second, all_alike = (
        errors(Unet(a), levels, latents, gamma=None, weights=w)
        for a, w in ((answer, weights), (changed, weights), (answer, torch.ones(3, 1, 6, 8)))
    )
    _, noise, _ = drawn()
    assert torch.equal(first, second)
    assert torch.allclose(first, (answer - noise)[:, :, :3].square().mean(dim=(1, 2, 3)), atol=1e-5)
    assert torch.equal(all_alike, errors(Unet(answer), levels, latents, gamma=None))


def test_an_offset_is_one_number_for_each_channel(latents):
    levels = NoiseSchedule.from_scheduler(scheduler("epsilon"))
    _, noise, generator = drawn()
    each = 0.1 * torch.randn(3, 4, 1, 1, generator=generator)
    unet = Unet(noise + each)
    assert errors(unet, levels, latents, gamma=None, offset=0.1).abs().max() < 1e-12
    assert errors(unet, levels, latents, gamma=None).min() > 1e-4


def test_sdxl_is_told_of_sizes_and_pooled_text(latents, answer):
    unet, pooled = Unet(answer), torch.ones(3, 2)
    errors(unet, NoiseSchedule(torch.full((1000,), 0.5)), latents, (TEXT, pooled))
    assert unet.added["text_embeds"] is pooled and unet.added["time_ids"].shape == (3, 6)


def test_cells_count_by_how_much_of_them_the_mask_covers():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32, :36] = 1
    weights = cell_weights(mask, (8, 8), 0.1)
    assert weights.shape == (1, 1, 8, 8) and torch.isclose(weights.mean(), torch.tensor(1.0))
    assert torch.isclose(weights[0, 0, 7, 7] / weights[0, 0, 0, 0], torch.tensor(0.1))
    assert torch.isclose(weights[0, 0, 0, 4] / weights[0, 0, 0, 0], torch.tensor(0.55))
    assert torch.equal(cell_weights(mask, (8, 8), 1.0), torch.ones(1, 1, 8, 8))
    assert not cell_weights(mask, (8, 8), 0.0)[0, 0, 4:].any()
    assert cell_weights(torch.zeros(1, 1, 64, 64), (8, 8), 0.0).isfinite().all()


def test_a_map_is_divided_by_its_own_peak():
    maps = torch.tensor([[[1.0, 2.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert torch.equal(max_normalized(maps), torch.stack([maps[0] / 4, maps[1]]))


@pytest.mark.parametrize("full_identity", [True, False])
def test_words_that_look_outside_the_mask_cost_something(full_identity):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    inside = torch.zeros(4, 4)
    inside[:, :2] = 0.5
    outside = inside.flip(1)

    def cost(own, kind):
        maps = {16: torch.stack([own, kind])[None]}
        return float(attention_leak(maps, mask, full_identity))

    assert cost(inside, inside) == 0
    assert cost(outside, inside) == pytest.approx(1)
    assert cost(inside, outside) == pytest.approx(1)
    narrow = torch.zeros(4, 4)
    narrow[0, 0] = 0.3
    # The class word must look at the whole figure where that is wanted: 7 of 16 cells lack it.
    assert cost(inside, narrow) == pytest.approx(7 / 16 if full_identity else 0)
    assert cost(narrow, inside) == 0
    two = {16: torch.stack([outside, inside])[None]}
    two[64] = two[16].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float(attention_leak(two, mask, full_identity)) == pytest.approx(2)


def test_where_the_mask_is_everything_no_word_can_stray():
    maps = {16: torch.rand(1, 2, 4, 4)}
    assert float(attention_leak(maps, torch.ones(1, 1, 8, 8), True)) == 0


def test_the_maps_of_a_batch_are_each_held_against_their_own_mask():
    masks = torch.from_numpy(np.kron(np.array([[[[1, 0], [1, 0]]], [[[0, 1], [0, 1]]]]), np.ones((4, 4)))).float()
    right = torch.zeros(2, 2, 2, 2)
    right[0, :, :, 0] = right[1, :, :, 1] = 1
    assert float(attention_leak({4: right}, masks, True)) == 0 < float(attention_leak({4: right.flip(0)}, masks, True))
