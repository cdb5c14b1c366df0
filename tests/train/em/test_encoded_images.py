"""Group images as the model is trained on them."""

from dataclasses import replace

from PIL import Image

from costars.train.em.encoded_images import encode_group_image
from costars.train.em.group_images import GroupImage


def test_image_is_cropped_to_the_size_of_its_latent(small, recipe):
    source = GroupImage("a.png", Image.new("RGB", (200, 50), "red"), ("ana",))
    encoded = encode_group_image(small, source, replace(recipe, max_aspect_ratio=3.0))
    assert encoded.source is source and encoded.cropped.size == (96, 32)
    height, width = (side * small.info.cell_px for side in encoded.latent.shape[-2:])
    assert (width, height) == encoded.cropped.size and encoded.size_ids.shape == (1, 6)
