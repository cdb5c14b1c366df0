"""The baseline: every adapter at once on one path, as diffusers does it."""

import pytest
import torch

from costars.methods.multi_lora.method import sample
from costars.resolve import resolve_scene


@pytest.fixture
def scene(make_scene):
    cast = {"a": {"concept": "a", "weight": 0.7}, "b": {"concept": "b", "weight": 0.9}}
    return make_scene(cast=cast, method="multi_lora", negative_prompt="blurry", seed=5)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # of diffusers, on loading a second
def test_it_equals_the_pipeline_of_diffusers_with_both_adapters(tiny, pipeline, golden, concepts, scene, finish):
    latent, step = finish(sample(resolve_scene(scene, tiny, concepts)))
    for name in "ab":
        pipeline.load_lora_weights(golden / f"char_{name}.safetensors", adapter_name=name)
    pipeline.set_adapters(["a", "b"], adapter_weights=[0.7, 0.9])
    expected = pipeline(
        "photo of a man and a woman in the forest",
        negative_prompt="blurry",
        latents=tiny.initial_noise((64, 64), 5),
        width=64,
        height=64,
        num_inference_steps=10,
        guidance_scale=5.0,
        output_type="latent",
    ).images
    assert torch.allclose(latent, expected, atol=1e-4, rtol=0)
    assert step.rows == 20


def test_the_adapters_decide_the_result_and_are_gone_after_it(tiny, concepts, scene, finish, trace):
    before = trace(tiny.unet)
    latent, _ = finish(sample(resolve_scene(scene, tiny, concepts)))
    off = {n: m.model_copy(update={"weight": 0.0}) for n, m in scene.cast.items()}
    plain, _ = finish(sample(resolve_scene(scene.model_copy(update={"cast": off}), tiny, concepts)))
    assert (latent - plain).abs().max() > 1e-2
    assert trace(tiny.unet) == before
