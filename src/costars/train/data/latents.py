"""Encode training images once: latents, size conditioning and masks, grouped by bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from costars.errors import TrainError
from costars.model.model import Model
from costars.model.predict import make_size_ids
from costars.train.data.aspect_buckets import Size, bucket_sizes, crop_to_bucket, group_by_bucket
from costars.train.data.images import Example
from costars.types import MaskArray


@dataclass(frozen=True)
class Batch:
    """Latents (b, c, h, w), indices of their captions, SDXL's size ids (b, 6), and masks (b, 1, H, W) or None."""

    latents: Tensor
    caption_indices: tuple[int, ...]
    size_ids: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class LatentDataset:
    """All encoded images, one batch per bucket; a training batch comes from one bucket."""

    buckets: Sequence[Batch]

    def sample_batch(self, size: int, generator: torch.Generator) -> Batch:
        """Draw `size` images of one bucket with replacement; all images are equally likely."""
        sizes = [len(bucket.caption_indices) for bucket in self.buckets]
        index = 0
        if len(sizes) > 1:
            index = int(torch.multinomial(torch.tensor(sizes, dtype=torch.float), 1, generator=generator))
        bucket = self.buckets[index]
        pick = torch.randint(len(bucket.caption_indices), (size,), generator=generator)
        masks = None if bucket.masks is None else bucket.masks[pick]
        captions = tuple(bucket.caption_indices[i] for i in pick)
        return Batch(bucket.latents[pick], captions, bucket.size_ids[pick], masks)


def encode_examples(
    model: Model,
    examples: Sequence[Example],
    *,
    flip_augmentation: bool = False,
    max_aspect_ratio: float = 2.0,
    size_conditioning: bool = True,
) -> LatentDataset:
    """Encode examples in aspect-ratio buckets of the model's native area; the caption index is the example's index.

    With flip_augmentation each image is encoded a second time, mirrored. With size_conditioning the size ids hold each
    image's original size and crop, else the bucket's size. If any example has a mask, examples without one get a mask
    of ones. Raises TrainError for a mask that the crop leaves empty, and for non-finite latents.
    """
    multiple = 8 if max(model.info.size_px) >= 512 else 4  # the UNet halves latents three times, or twice
    sizes = bucket_sizes(max(model.info.size_px), multiple * model.info.cell_px, max_aspect_ratio)
    with_masks = any(example.mask is not None for example in examples)
    buckets = []
    for size, members in group_by_bucket(examples, sizes).items():
        latents, captions, size_ids, masks = [], list[int](), [], []
        for i in members:
            for example in _with_mirrored(examples[i]) if flip_augmentation else (examples[i],):
                cropped, ids = _crop(example, size, size_conditioning)
                latents.append(_encode_image(model, cropped))
                captions.append(i)
                size_ids.append(ids)
                masks.append(_mask_tensor(cropped))
        stacked_ids = torch.stack(size_ids).to(model.device)
        stacked_masks = torch.stack(masks) if with_masks else None
        buckets.append(Batch(torch.cat(latents), tuple(captions), stacked_ids, stacked_masks))
    return LatentDataset(buckets)


def _crop(example: Example, size: Size, size_conditioning: bool) -> tuple[Example, Tensor]:
    """Crop an example to its bucket and make its size ids (6,)."""
    cropped, (height, width, top, left) = crop_to_bucket(example, size)
    if cropped.mask is not None and not cropped.mask.any():
        raise TrainError(
            f"{example.name}: its mask is empty after the crop to {size[0]} x {size[1]} px; crop the image to the "
            "concept, or raise max_aspect_ratio"
        )
    target = (size[1], size[0])
    original, crop = ((height, width), (top, left)) if size_conditioning else (target, (0, 0))
    return cropped, make_size_ids(original, crop, target)


def _with_mirrored(example: Example) -> Iterator[Example]:
    mask: MaskArray | None = None if example.mask is None else np.ascontiguousarray(example.mask[:, ::-1])
    yield example
    yield replace(example, image=ImageOps.mirror(example.image), mask=mask)


def _mask_tensor(example: Example) -> Tensor:
    """(1, H, W), ones without a mask."""
    if example.mask is None:
        return torch.ones(1, example.image.height, example.image.width)
    return torch.from_numpy(np.asarray(example.mask, dtype=np.float32))[None]


def _encode_image(model: Model, example: Example) -> Tensor:
    """(1, c, h, w) float32, the scaled mean of the VAE's posterior."""
    pixels = torch.from_numpy(np.array(example.image)).permute(2, 0, 1)[None].float().div(127.5).sub(1)
    latent = model.encode(pixels)
    if not bool(latent.isfinite().all()):
        raise TrainError(f"{example.name or 'an image'}: non-finite latent; use --dtype float32, or another VAE")
    return latent
