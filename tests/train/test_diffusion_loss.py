"""Diffusion losses against diffusers and sums by hand, and the attention loss."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from costars.model.predict import Conditioning, NoiseSchedule
from costars.train.diffusion_loss import attention_leak, cell_weights, max_normalized, noise_errors

SHAPE = (3, 4, 6, 8)
TEXT = torch.zeros(3, 5, 7)


def scheduler(prediction: str) -> DDPMScheduler:
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction)


class Unet:
    """Predicts `answer` and remembers its arguments."""

    def __init__(self, answer: torch.Tensor) -> None:
        self.answer = answer

    def __call__(self, noisy, t, tokens, added_cond_kwargs):
        self.noisy, self.t, self.tokens, self.added = noisy, t, tokens, added_cond_kwargs
        return SimpleNamespace(sample=self.answer)


def drawn(seed: int = 0):
    """What a generator of this seed draws: timesteps, then noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1000, (3,), generator=generator), torch.randn(SHAPE, generator=generator), generator


@pytest.fixture
def latents():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))


@pytest.fixture
def answer():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(8))


def errors(unet, schedule, latents, text=(TEXT, None), **options):
    conditioning = Conditioning(*text, torch.ones(1, 6))
    return noise_errors(unet, schedule, latents, conditioning, torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_errors_match_diffusers_noise_or_velocity(latents, answer, prediction):
    theirs, unet = scheduler(prediction), Unet(answer)
    schedule = NoiseSchedule.from_scheduler(theirs)
    t, noise, _ = drawn()
    target = noise if prediction == "epsilon" else theirs.get_velocity(latents, noise, t)
    found = errors(unet, schedule, latents, snr_gamma=None)
    assert schedule.velocity == (prediction == "v_prediction") and found.shape == (3,)
    assert torch.equal(unet.t, t) and unet.tokens is TEXT and unet.added is None
    assert torch.allclose(unet.noisy, theirs.add_noise(latents, noise, t), atol=1e-5)
    assert torch.allclose(found, (answer - target).square().mean(dim=(1, 2, 3)), atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_match_the_paper(latents, answer, prediction):
    """min(snr, gamma) / snr for noise, / (snr + 1) for velocity, as in diffusers' training scripts."""
    theirs = scheduler(prediction)
    t, _, _ = drawn()
    snr = compute_snr(theirs, t)
    assert (snr > 5).any() and (snr < 5).any()
    weight = snr.clamp(max=5.0) / (snr if prediction == "epsilon" else snr + 1)
    schedule = NoiseSchedule.from_scheduler(theirs)
    plain, weighed = (errors(Unet(answer), schedule, latents, snr_gamma=gamma) for gamma in (None, 5.0))
    assert torch.allclose(weighed, plain * weight, rtol=1e-4)


def test_cells_without_weight_do_not_count(latents, answer):
    schedule, weights = NoiseSchedule.from_scheduler(scheduler("epsilon")), torch.zeros(3, 1, 6, 8)
    weights[:, :, :3] = 2
    changed = answer.clone()
    changed[:, :, 3:] += 100
    first, second, all_alike = (
        errors(Unet(a), schedule, latents, snr_gamma=None, weights=w)
        for a, w in ((answer, weights), (changed, weights), (answer, torch.ones(3, 1, 6, 8)))
    )
    _, noise, _ = drawn()
    assert torch.equal(first, second)
    assert torch.allclose(first, (answer - noise)[:, :, :3].square().mean(dim=(1, 2, 3)), atol=1e-5)
    assert torch.equal(all_alike, errors(Unet(answer), schedule, latents, snr_gamma=None))


def test_noise_offset_is_one_number_per_channel(latents):
    schedule = NoiseSchedule.from_scheduler(scheduler("epsilon"))
    _, noise, generator = drawn()
    each = 0.1 * torch.randn(3, 4, 1, 1, generator=generator)
    unet = Unet(noise + each)
    assert errors(unet, schedule, latents, snr_gamma=None, noise_offset=0.1).abs().max() < 1e-12
    assert errors(unet, schedule, latents, snr_gamma=None).min() > 1e-4


def test_pooled_text_and_size_ids_are_passed_to_sdxl(latents, answer):
    unet, pooled = Unet(answer), torch.ones(3, 2)
    errors(unet, NoiseSchedule(torch.full((1000,), 0.5)), latents, (TEXT, pooled))
    assert unet.added["text_embeds"] is pooled and unet.added["time_ids"].shape == (3, 6)


def test_cell_weights_follow_mask_coverage_with_mean_one():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32, :36] = 1
    weights = cell_weights(mask, (8, 8), 0.1)
    assert weights.shape == (1, 1, 8, 8) and torch.isclose(weights.mean(), torch.tensor(1.0))
    assert torch.isclose(weights[0, 0, 7, 7] / weights[0, 0, 0, 0], torch.tensor(0.1))
    assert torch.isclose(weights[0, 0, 0, 4] / weights[0, 0, 0, 0], torch.tensor(0.55))
    assert torch.equal(cell_weights(mask, (8, 8), 1.0), torch.ones(1, 1, 8, 8))
    assert not cell_weights(mask, (8, 8), 0.0)[0, 0, 4:].any()
    assert cell_weights(torch.zeros(1, 1, 64, 64), (8, 8), 0.0).isfinite().all()


def test_max_normalized_divides_each_map_by_its_maximum():
    maps = torch.tensor([[[1.0, 2.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert torch.equal(max_normalized(maps), torch.stack([maps[0] / 4, maps[1]]))


@pytest.mark.parametrize("full_identity", [True, False])
def test_attention_leak_counts_attention_outside_of_the_mask(full_identity):
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    inside = torch.zeros(4, 4)
    inside[:, :2] = 0.5
    outside = inside.flip(1)

    def cost(first, second):
        maps = {16: torch.stack([first, second])[None]}
        return float(attention_leak(maps, mask, full_identity))

    assert cost(inside, inside) == 0
    assert cost(outside, inside) == pytest.approx(1)
    assert cost(inside, outside) == pytest.approx(1)
    narrow = torch.zeros(4, 4)
    narrow[0, 0] = 0.3
    # With full_identity the second word must cover the mask: 7 of 16 cells are missing.
    assert cost(inside, narrow) == pytest.approx(7 / 16 if full_identity else 0)
    assert cost(narrow, inside) == 0
    two = {16: torch.stack([outside, inside])[None]}
    two[64] = two[16].repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float(attention_leak(two, mask, full_identity)) == pytest.approx(2)


def test_attention_leak_is_zero_for_a_full_mask():
    maps = {16: torch.rand(1, 2, 4, 4)}
    assert float(attention_leak(maps, torch.ones(1, 1, 8, 8), True)) == 0


def test_attention_leak_compares_each_row_with_its_own_mask():
    masks = torch.from_numpy(np.kron(np.array([[[[1, 0], [1, 0]]], [[[0, 1], [0, 1]]]]), np.ones((4, 4)))).float()
    right = torch.zeros(2, 2, 2, 2)
    right[0, :, :, 0] = right[1, :, :, 1] = 1
    assert float(attention_leak({4: right}, masks, True)) == 0 < float(attention_leak({4: right.flip(0)}, masks, True))
