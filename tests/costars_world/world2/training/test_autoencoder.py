from __future__ import annotations

import torch

from costars_world.world2.training.autoencoder import (
    VaeRecipe,
    build_vae,
    measure_vae,
    normalize_latents,
    picture_loss,
    train_vae,
)
from costars_world.world2.training.batches import Rendered
from costars_world.world2.training.clock import Clock, Span
from costars_world.world2.training.latents import LatentCache
from costars_world.world2.training.tokenizer import CaptionEncoder, load_tokenizers, write_tokenizers


def test_normalised_latents_have_unit_channels_and_decode_to_the_same_picture(pictures):
    torch.manual_seed(0)
    vae, x = build_vae().eval(), torch.rand(1, 3, 64, 64) * 2 - 1
    rendered = Rendered(pictures.plan, pictures.store)
    rendered.refresh()
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mean).sample
        noise = vae.encode(x).latent_dist.std
        normalize_latents(vae, rendered, count=4)
        after = vae.decode(vae.encode(x).latent_dist.mean).sample
    assert torch.allclose(before, after, atol=1e-4)
    assert not torch.allclose(noise, vae.encode(x).latent_dist.std)
    assert vae.config["scaling_factor"] == 1.0
    assert abs(measure_vae(vae, rendered, count=4)["latent_std"] - 1) < 0.5


def test_a_right_picture_costs_nothing():
    x = torch.rand(2, 3, 16, 16)
    assert float(picture_loss(x, x, VaeRecipe())) == 0.0
    assert float(picture_loss(x + 0.1, x, VaeRecipe())) > 0.0


def test_the_decoder_alone_leaves_latents_as_they_are(pictures, monkeypatch):
    vae, x = build_vae(), torch.rand(1, 3, 32, 32)
    before = vae.encode(x).latent_dist.mean.detach()
    decoded = vae.decode(before).sample.detach()
    span = Span(Clock(0.0, 1.0), 0.0, 1.0)
    steps = iter([False, False, True])
    monkeypatch.setattr(Span, "over", lambda self: next(steps))
    monkeypatch.setattr(Span, "progress", lambda self: 0.1)
    rendered = Rendered(pictures.plan, pictures.store)
    train_vae(vae, rendered, VaeRecipe(batch=1), span, torch.float32, decoder_only=True)
    assert torch.equal(vae.encode(x).latent_dist.mean, before)
    assert not torch.equal(vae.decode(before).sample, decoded)


def test_the_cache_holds_every_training_picture_once(pictures, tmp_path):
    write_tokenizers(tmp_path, pictures.world.words)
    rendered = Rendered(pictures.plan, pictures.store)
    captions = CaptionEncoder(load_tokenizers(tmp_path))
    cache = LatentCache(build_vae().eval(), rendered, captions, torch.float16)
    assert cache.update(limit=3) >= 3
    cache.update()
    assert cache.count == rendered.refresh() == 26
    assert cache.update() == 0
    latents, ids = cache.draw(torch.Generator().manual_seed(0), 2, 0)
    assert latents.shape == (2, 8, 16, 16)
    assert ids.shape == (2, 2, 77)
