"""Group images as the model is trained on them: cropped to a bucket and encoded."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from costars.model.model import Model
from costars.train.data.aspect_buckets import crop_to_bucket
from costars.train.data.images import Example
from costars.train.data.latents import encode_examples
from costars.train.em.group_images import GroupImage
from costars.train.recipe import Recipe


@dataclass(frozen=True)
class EncodedImage:
    """A group image cropped to its bucket, with its latent (1, c, h, w) and size ids (1, 6)."""

    source: GroupImage
    cropped: Image.Image
    latent: Tensor
    size_ids: Tensor


def encode_group_image(model: Model, image: GroupImage, recipe: Recipe) -> EncodedImage:
    """Crop and encode a group image."""
    example = Example(image.image)
    (bucket,) = encode_examples(
        model,
        [example],
        max_aspect_ratio=recipe.max_aspect_ratio,
        size_conditioning=recipe.size_conditioning,
    ).buckets
    height, width = (side * model.info.cell_px for side in bucket.latents.shape[-2:])
    return EncodedImage(image, crop_to_bucket(example, (width, height))[0].image, bucket.latents, bucket.size_ids)
