"""Scaling of latents: equal to diffusers' SDXL pipeline, and encoding is its inverse."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from costars.errors import ModelError
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.vae_latents import scale_latents, unscale_latents

CPU = torch.device("cpu")
MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]  # Playground v2.5


@pytest.fixture
def shifted(linked, copy_part):
    """The tiny SDXL checkpoint with a mean and a deviation of its latents."""
    config = copy_part(linked, "vae") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latents_mean": MEAN, "latents_std": STD}))
    return linked


def test_decoding_equals_diffusers_pipeline(tiny, shifted):
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(shifted, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    latents = {}
    expected = pipeline(
        "a man",
        width=64,
        height=64,
        num_inference_steps=1,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=lambda _, i, t, values: latents.update(values) or values,
    ).images[0]
    ours = load_model(Source("mine", shifted), CPU, torch.float32).decode(latents["latents"])
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(expected, dtype=int)).max() <= 1
    without = np.asarray(tiny.decode(latents["latents"]), dtype=int)
    assert np.abs(without - np.asarray(expected, dtype=int)).max() > 10


@pytest.mark.parametrize("mean", [None, MEAN])
def test_scaling_is_the_inverse(mean):
    config = {"scaling_factor": 0.5, "latents_mean": mean, "latents_std": mean and STD}
    latents = torch.randn(2, 4, 3, 5)
    assert torch.allclose(unscale_latents(scale_latents(latents, config), config), latents, atol=1e-5)
    expected = latents * 0.5 if mean is None else (latents - torch.tensor(MEAN).view(1, 4, 1, 1)) * 0.5
    expected = expected if mean is None else expected / torch.tensor(STD).view(1, 4, 1, 1)
    assert torch.allclose(scale_latents(latents, config), expected)


def test_encoding_uses_mean_and_deviation(tiny, shifted):
    model = load_model(Source("mine", shifted), CPU, torch.float32)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    raw = tiny.encode(pixels) / tiny.vae.config["scaling_factor"]
    assert torch.allclose(model.encode(pixels), scale_latents(raw, model.vae.config), atol=1e-5)


def test_vae_without_encoder_decodes_and_says_that_it_cannot_encode(tiny, linked, copy_part):
    from safetensors.torch import load_file, save_file

    path = copy_part(linked, "vae") / "diffusion_pytorch_model.safetensors"
    decoder = {k: v for k, v in load_file(path).items() if not k.startswith(("encoder.", "quant_conv."))}
    save_file(decoder, path, metadata={"format": "pt"})
    model = load_model(Source("mine", linked), CPU, torch.float32)
    latent = torch.randn(1, 4, 8, 8)
    assert model.decode(latent).tobytes() == tiny.decode(latent).tobytes()
    with pytest.raises(ModelError, match=r"model 'mine': its VAE has no encoder, .*; set checkpoint.vae"):
        model.encode(torch.zeros(1, 3, 64, 64))
    assert replace(model, vae=tiny.vae).encode(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 8, 8)
