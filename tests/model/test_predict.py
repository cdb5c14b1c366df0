"""The shared prediction call: equal to diffusers' pipelines, and noise schedules equal to its schedulers."""

import torch

from costars.model.hub import Source
from costars.model.load import load_model
from costars.sample.loop import denoise, sampler
from costars.types import DenoisingPath

CPU = torch.device("cpu")


def load(path, **options):
    return load_model(Source("mine", path, **options), CPU, torch.float32, 0, "attention")


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
    plan = sampler(sd15.scheduler, 5, CPU, (64, 72), 7.5, seed=3)
    texts = [sd15.encode_text(p) for p in ("a man in the forest", "blurry")]
    *_, step = denoise(sd15, plan.noise(sd15), [DenoisingPath("global", *texts)], plan)
    assert torch.allclose(step.latent, expected, atol=1e-4, rtol=0)
