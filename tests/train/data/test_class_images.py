"""Class images, generated or given."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from costars.train.checkpoint import load_checkpoint
from costars.train.data import class_images
from costars.train.data.class_images import batch_class_latents, encode_class_images, generate_class_latents
from costars.train.data.images import Example


@pytest.fixture
def prompts(monkeypatch) -> list[str]:
    """The prompts that are sampled; a latent is the seed."""
    sampled: list[str] = []

    def sample_latent(model, prompt, seed):
        sampled.append(prompt)
        return torch.full((1, 4, 8, 8), float(seed))

    monkeypatch.setattr(class_images, "sample_latent", sample_latent)
    return sampled


def generate(model, count: int = 3, seed: int = 5, cache=None, given=("a woman", "a (old) woman")) -> list[float]:
    return [float(latent.mean()) for latent in generate_class_latents(model, given, count, seed, cache)]


def test_prompts_cycle_and_seeds_count_up(small, prompts):
    assert generate(small) == [5, 6, 7]
    assert prompts == ["a woman", "a (old) woman", "a woman"]


def test_cached_latents_are_not_sampled_again(small, prompts, tmp_path):
    cache = tmp_path / "checkpoint.prior"
    assert generate(small, 2, cache=cache) == [5, 6] and len(prompts) == 2
    assert generate(small, 3, cache=cache) == [5, 6, 7] and len(prompts) == 3
    assert sorted(load_checkpoint(cache)[0]) == ["0", "1", "2"]


@pytest.mark.parametrize("changes", [{"seed": 6}, {"given": ("a man",)}, {"model": "other"}])
def test_cache_of_other_class_images_is_ignored(small, prompts, tmp_path, changes):
    cache = tmp_path / "checkpoint.prior"
    generate(small, 2, cache=cache)
    model = small
    if changes.pop("model", None):
        model = replace(small, info=replace(small.info, sha256="0" * 64))
    generate(model, 2, cache=cache, **changes)
    assert len(prompts) == 4


def test_latents_generated_before_a_stop_are_cached(small, prompts, tmp_path):
    cache = tmp_path / "checkpoint.prior"
    latents = generate_class_latents(small, ["a woman"], 3, 5, cache)
    next(latents)
    latents.close()
    assert sorted(load_checkpoint(cache)[0]) == ["0"]


def test_given_class_images_keep_their_captions(small, short_recipe):
    """Each size is a bucket of its own, and caption indices start at the given one."""
    sizes = {"a blue woman": (64, 64), "a white woman": (32, 128)}
    examples = [Example(Image.new("RGB", size), caption) for caption, size in sizes.items()]
    found, captions = encode_class_images(small, examples * 2, short_recipe("dreambooth", max_aspect_ratio=4.0), 7)
    assert captions == tuple(sizes)
    indices = {tuple(bucket.latents.shape[-2:]): bucket.caption_indices for bucket in found.buckets}
    assert indices == {(8, 8): (7, 7), (16, 4): (8, 8)}


def test_batch_of_generated_latents_cycles_through_captions(small):
    (batch,) = batch_class_latents(small, [torch.zeros(1, 4, 8, 8)] * 3, 2, 4).buckets
    assert batch.caption_indices == (4, 5, 4) and batch.latents.shape == (3, 4, 8, 8)
    assert batch.size_ids.tolist() == [[64, 64, 0, 0, 64, 64]] * 3
