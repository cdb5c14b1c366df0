"""The shared prediction call: equal to diffusers' pipelines, and noise schedules equal to its schedulers."""

import pytest
import torch
from diffusers import DDIMScheduler

from costars.model.predict import Conditioning, NoiseSchedule, join_pooled, make_size_ids, predict_noise
from costars.sample.loop import denoise, prepare_sampler
from costars.types import DenoisingPath

CPU = torch.device("cpu")


def test_sampling_sd15_equals_diffusers_pipeline(sd15, sd15_folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(sd15_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a man in the forest",
        negative_prompt="blurry",
        latents=sd15.initial_noise((64, 72), 3),
        width=64,
        height=72,
        num_inference_steps=5,
        output_type="latent",
    ).images
    plan = prepare_sampler(sd15.scheduler, 5, CPU, (64, 72), 7.5, seed=3)
    texts = [sd15.encode_text(p) for p in ("a man in the forest", "blurry")]
    *_, step = denoise(sd15, plan.noise(sd15), [DenoisingPath("global", *texts)], plan)
    assert torch.allclose(step.latent, expected, atol=1e-4, rtol=0)


def test_prediction_equals_the_unet(tiny):
    text, generator = tiny.encode_text("a man"), torch.Generator().manual_seed(0)
    sample, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor(500)
    tokens, pooled = text.tokens.expand(2, -1, -1), text.pooled.expand(2, -1)
    added = {"text_embeds": pooled, "time_ids": tiny.size_ids((64, 64)).expand(2, -1)}
    with torch.no_grad():
        expected = tiny.unet(sample, t, tokens, added_cond_kwargs=added).sample
        predicted = predict_noise(tiny.unet, sample, t, Conditioning(tokens, pooled, tiny.size_ids((64, 64))))
    assert torch.equal(predicted, expected)


def test_conditioning_without_pooled_text_adds_nothing():
    conditioning = Conditioning(torch.zeros(2, 77, 4), None, torch.zeros(1, 6))
    assert conditioning.added is None and conditioning.rows(slice(0, 1)).added is None


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([1, 2])])
def test_rows_of_conditioning(index):
    tokens, pooled = torch.randn(3, 77, 4), torch.randn(3, 5)
    conditioning = Conditioning(tokens, pooled, torch.arange(6.0)[None]).rows(index)
    assert torch.equal(conditioning.tokens, tokens[1:]) and torch.equal(conditioning.pooled, pooled[1:])
    assert torch.equal(conditioning.added["time_ids"], torch.arange(6.0).expand(2, 6))


def test_pooled_embeddings_are_joined():
    assert join_pooled([None, None]) is None
    assert torch.equal(join_pooled([torch.zeros(1, 2), torch.ones(1, 2)]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))


def test_size_ids_are_original_crop_target():
    assert make_size_ids((100, 200), (3, 4), (64, 128)).tolist() == [100, 200, 3, 4, 64, 128]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_schedule_equals_diffusers(prediction):
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type=prediction)
    schedule, generator = NoiseSchedule.from_scheduler(scheduler), torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 6, 8, generator=generator) for _ in range(2))
    t = torch.tensor([0, 500, 999])
    target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, t)
    assert torch.allclose(schedule.add_noise(latents, noise, t), scheduler.add_noise(latents, noise, t), atol=1e-6)
    assert torch.allclose(schedule.target(latents, noise, t), target, atol=1e-6)
    alphas = scheduler.alphas_cumprod[t]
    assert torch.allclose(schedule.snr(t), alphas / (1 - alphas))
