"""Pictures as a recipe trains on them: latents, sizes and masks, encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from costars.errors import TrainError
from costars.model.model import Model
from costars.model.predict import make_size_ids
from costars.train.data.aspect_buckets import bucket_sizes, crop_to_bucket, group_by_bucket
from costars.train.data.images import Example
from costars.types import MaskArray


@dataclass(frozen=True)
class Batch:
    """latents (b, c, h, w), the numbers of their captions, SDXL's size ids (b, 6), masks (b, 1, H, W) or None."""

    latents: Tensor
    captions: tuple[int, ...]
    size_ids: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class LatentDataset:
    """Every picture encoded, by size: pictures of one batch are of one size."""

    buckets: Sequence[Batch]

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return sum(len(bucket.captions) for bucket in self.buckets)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """A batch of one bucket, every picture of all as likely as another."""
        sizes = [len(bucket.captions) for bucket in self.buckets]
        which = 0
        if len(sizes) > 1:
            which = int(torch.multinomial(torch.tensor(sizes, dtype=torch.float), 1, generator=generator))
        bucket = self.buckets[which]
        pick = torch.randint(len(bucket.captions), (size,), generator=generator)
        masks = None if bucket.masks is None else bucket.masks[pick]
        return Batch(bucket.latents[pick], tuple(bucket.captions[i] for i in pick), bucket.size_ids[pick], masks)


def encode_examples(
    model: Model,
    examples: Sequence[Example],
    *,
    flip_augmentation: bool = False,
    max_aspect_ratio: float = 2.0,
    size_conditioning: bool = True,
) -> LatentDataset:
    """The pictures in buckets of the model's size, sides at most 1 : max_aspect_ratio; each twice with
    flip_augmentation.

    With size_conditioning SDXL is told of each picture's own size, else of the bucket's.

    A picture without a mask counts as all of its concept where others have one. Raises TrainError for an
    encoder that gives no finite number.
    """
    cells = 8 if max(model.facts.size_px) >= 512 else 4  # the UNet halves the latents three times, or twice
    sizes = bucket_sizes(max(model.facts.size_px), cells * model.facts.cell_px, max_aspect_ratio)
    masked = any(example.mask is not None for example in examples)
    buckets = []
    for size, members in group_by_bucket(examples, sizes).items():
        latents, captions, ids, masks = [], list[int](), [], []
        for i in members:
            for example in _sides(examples[i]) if flip_augmentation else (examples[i],):
                shown, (height, width, top, left) = crop_to_bucket(example, size)
                if shown.mask is not None and not shown.mask.any():
                    raise TrainError(
                        f"{example.name}: nothing of its mask is left in {size[0]} x {size[1]} px; cut the picture to "
                        "what it shows, or allow longer ones with max_aspect_ratio"
                    )
                latents.append(_latent(model, shown))
                captions.append(i)
                target = (size[1], size[0])
                original, crop = ((height, width), (top, left)) if size_conditioning else (target, (0, 0))
                ids.append(make_size_ids(original, crop, target))
                masks.append(_mask(shown))
        stacked = torch.stack(masks) if masked else None
        buckets.append(
            Batch(torch.cat(latents), tuple(captions), torch.stack(ids).to(model.device, model.dtype), stacked)
        )
    return LatentDataset(buckets)


def _sides(example: Example) -> tuple[Example, Example]:
    mask: MaskArray | None = None if example.mask is None else np.ascontiguousarray(example.mask[:, ::-1])
    return example, replace(example, image=ImageOps.mirror(example.image), mask=mask)


def _mask(example: Example) -> Tensor:
    if example.mask is None:
        return torch.ones(1, example.image.height, example.image.width)
    return torch.from_numpy(np.asarray(example.mask, dtype=np.float32))[None]


@torch.no_grad()
def _latent(model: Model, example: Example) -> Tensor:
    pixels = torch.from_numpy(np.array(example.image)).permute(2, 0, 1)[None].float().div(127.5).sub(1)
    mean = model.vae.encode_examples(pixels.to(model.device, model.vae.dtype)).latent_dist.mean
    if not bool(mean.isfinite().all()):
        raise TrainError(f"{example.name or 'a picture'}: its latent is not finite; use float32, or another VAE")
    scaled: Tensor = mean.float() * model.vae.config["scaling_factor"]
    return scaled
