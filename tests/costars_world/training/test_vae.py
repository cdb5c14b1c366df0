"""The autoencoder's inputs, crops and initialisation."""

import torch

from costars_world.training import vae


def test_images_become_tensors_in_unit_range():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 4, 6, 3)
    tensor = vae.images_to_tensor(images)
    assert tensor.shape == (2, 3, 4, 6) and tensor.unique().tolist() == [-1, 1]


def test_crops_are_parts_of_their_images_on_the_latent_grid():
    images = torch.arange(128.0).view(1, 1, 1, 128).expand(5, 3, 128, 128)
    crops = vae.crop_randomly(images, torch.Generator().manual_seed(0))
    assert crops.shape == (5, 3, vae.CROP_PX, vae.CROP_PX)
    assert (crops[:, 0, 0, 0] % 8 == 0).all() and crops[:, 0, 0, 0].unique().numel() > 1


def test_reconstruction_loss_is_zero_for_equal_images():
    image = torch.rand(1, 3, 8, 8)
    assert vae.reconstruction_loss(image, image) == 0 < vae.reconstruction_loss(image, 1 - image)


def test_untrained_posteriors_are_narrow_and_latents_have_eight_channels():
    torch.manual_seed(0)
    posterior = vae.build().eval().encode(torch.zeros(1, 3, 64, 64)).latent_dist
    assert posterior.mean.shape == (1, 8, 8, 8) and posterior.std.max() < 0.2
