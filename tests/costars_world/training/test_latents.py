"""Latents of the dataset are encoded once and scaled."""

import torch

from costars_world.training import dataset, latents, vae


def test_latents_are_scaled_and_encoded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "CHUNK_SIZE", 2)
    list(dataset.render(tmp_path / "pictures", 4, workers=1))
    torch.manual_seed(0)
    model = vae.build().eval()
    model.register_to_config(scaling_factor=0.5)
    assert list(latents.encode_dataset(model, tmp_path / "pictures", tmp_path / "latents", 4)) == [2, 4]
    mean, std = latents.load(tmp_path / "latents", 4)
    images = torch.from_numpy(dataset.load(tmp_path / "pictures", 4).images)
    expected, deviation = latents.encode_images(model, images)
    assert mean.shape == (4, 8, 16, 16)
    assert torch.allclose(mean.float(), expected * 0.5, atol=1e-2) and torch.allclose(
        std.float(), deviation * 0.5, atol=1e-2
    )
    monkeypatch.setattr(latents, "encode_images", None)
    assert list(latents.encode_dataset(model, tmp_path / "pictures", tmp_path / "latents", 4)) == [2, 4]
