from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline

from costars_world.world2.training.autoencoder import build_vae
from costars_world.world2.training.base import (
    Base,
    BaseRecipe,
    Denoiser,
    Noise,
    build_base,
    encode_text,
    errors,
    size_ids,
)
from costars_world.world2.training.collect import collect
from costars_world.world2.training.export import half_state, read_state, save_shards, save_whole
from costars_world.world2.training.files import PARTS
from costars_world.world2.training.tokenizer import CaptionEncoder
from costars_world.world2.training.world import load_world


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    torch.manual_seed(0)
    return build_base(load_world(), tmp_path_factory.mktemp("base"), BaseRecipe())


def test_the_unet_is_small_enough_to_ship(base):
    assert sum(p.numel() for p in base.unet.parameters()) < 22e6


def test_noise_and_velocity_are_those_of_diffusers(base):
    noise = Noise.of(base.scheduler, torch.device("cpu"))
    theirs = DDPMScheduler.from_config(base.scheduler.config)
    x, drawn, t = torch.randn(3, 8, 4, 4), torch.randn(3, 8, 4, 4), torch.tensor([1, 500, 998])
    noisy, target = noise.add(x, drawn, t)
    assert torch.allclose(noisy, theirs.add_noise(x, drawn, t), atol=1e-5)
    assert torch.allclose(target, theirs.get_velocity(x, drawn, t), atol=1e-5)


def test_the_last_level_is_pure_noise_and_sampling_starts_there(base):
    noise = Noise.of(base.scheduler, torch.device("cpu"))
    assert float(noise.alphas[-1]) < 1e-6
    base.scheduler.set_timesteps(25)
    assert int(base.scheduler.timesteps[0]) == 999


def test_weights_favour_shapes_and_end_alike(base):
    noise, t = Noise.of(base.scheduler, torch.device("cpu")), torch.tensor([0, 500, 999])
    early = noise.weights(t, 5.0)
    assert early[0] < 0.01 < early[1] <= early[2] == 1.0
    assert (noise.weights(t, None) == 1).all()


def test_errors_have_one_value_for_each_latent(base):
    noise = Noise.of(base.scheduler, torch.device("cpu"))
    ids, latents = torch.zeros(2, 2, 77, dtype=torch.long), torch.randn(2, 8, 16, 24)
    sizes = size_ids((192, 128), torch.device("cpu"))
    found = errors(Denoiser(base), noise, latents, ids, sizes, torch.tensor([3, 999]), torch.randn(2, 8, 16, 24))
    assert found.shape == (2,)


def test_collected_files_load_as_an_sdxl_pipeline(base, tmp_path):
    vae = build_vae()
    facts = {"step": "1"}
    save_shards(tmp_path, half_state(base.unet), facts)
    parts = half_state(base.text_encoder, "text_encoder.") | half_state(base.text_encoder_2, "text_encoder_2.")
    save_whole(tmp_path / PARTS, parts | half_state(vae, "vae."), facts)
    collect(tmp_path, tmp_path / "weights", load_world())
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "weights" / "model", dtype=torch.float32)
    prompt = "a man and a dog in a park"
    with torch.no_grad():
        theirs, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=True)
        ids = torch.from_numpy(CaptionEncoder((base.tokenizer, base.tokenizer_2))([prompt]).transpose(1, 0, 2)).long()
        ours = encode_text(base.text_encoder.half().float(), base.text_encoder_2.half().float(), ids)
    assert torch.allclose(ours[0], theirs.float(), atol=1e-2)
    assert torch.allclose(ours[1], pooled.float(), atol=1e-2)
    image = pipeline(prompt, num_inference_steps=2, width=128, height=128, output_type="np").images[0]
    assert image.shape == (128, 128, 3)


def test_shards_of_different_steps_are_not_mixed(base, tmp_path):
    save_whole(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {"step": "1"})
    save_whole(tmp_path / "b.safetensors", {"y": torch.zeros(1)}, {"step": "2"})
    with pytest.raises(ValueError, match="step 2"):
        read_state(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
