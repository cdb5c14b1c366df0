"""The training pictures as latents, kept on the GPU; new pictures are encoded as they are rendered."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from costars_world.world2.training.batches import Rendered, batch_size, pieces, to_pixels
from costars_world.world2.training.plan import SHAPES
from costars_world.world2.training.tokenizer import CaptionEncoder

ENCODE_BATCH = 256  # square pictures
GROWTH = 1.5  # an array that is full is copied into one larger by this


@dataclass
class Encoded:
    """Pictures of one shape: mean, std (n, c, h, w) half precision, ids (n, 2, t) int32; the first count are filled."""

    mean: Tensor
    std: Tensor
    ids: Tensor
    count: int = 0


@dataclass
class LatentCache:
    """All encoded pictures by shape, on the device, and which slots they are."""

    vae: AutoencoderKL
    rendered: Rendered
    captions: CaptionEncoder
    dtype: torch.dtype
    shapes: list[Encoded | None] = field(default_factory=lambda: [None] * len(SHAPES))
    seen: NDArray[np.bool_] | None = None

    @property
    def count(self) -> int:
        """Pictures encoded so far."""
        return sum(e.count for e in self.shapes if e is not None)

    def update(self, limit: int | None = None) -> int:
        """Encode at most so many pictures that are rendered and not yet encoded; returns how many."""
        self.rendered.refresh()
        if self.seen is None:
            self.seen = np.zeros(self.rendered.plan.count, dtype=bool)
        done = 0
        for shape, slots in enumerate(self.rendered.slots):
            for part in pieces(slots[~self.seen[slots]], batch_size(ENCODE_BATCH, shape)):
                if limit is not None and done >= limit:
                    return done
                self._append(shape, part)
                self.seen[part] = True
                done += len(part)
        return done

    def _append(self, shape: int, slots: NDArray[np.int64]) -> None:
        images = self.rendered.images(shape, slots).to(self.vae.device, non_blocking=True)
        mean, std = encode(self.vae, images, self.dtype)
        lines = [self.rendered.store.caption(s) for s in slots]
        ids = torch.from_numpy(self.captions(lines).transpose(1, 0, 2).copy()).to(self.vae.device)
        kept = self._room(shape, len(slots), mean)
        end = kept.count + len(slots)
        kept.mean[kept.count : end], kept.std[kept.count : end] = mean, std
        kept.ids[kept.count : end] = ids
        kept.count = end

    def _room(self, shape: int, more: int, like: Tensor) -> Encoded:
        kept = self.shapes[shape]
        if kept is None or kept.count + more > len(kept.mean):
            size = max(more, int(GROWTH * (kept.count + more if kept is not None else more)), 4 * ENCODE_BATCH)
            width = like.new_empty((size, *like.shape[1:]))
            ids = torch.zeros((size, 2, 77), dtype=torch.int32, device=like.device)
            grown = Encoded(width, torch.empty_like(width), ids)
            if kept is not None:
                n = grown.count = kept.count
                grown.mean[:n], grown.std[:n], grown.ids[:n] = kept.mean[:n], kept.std[:n], kept.ids[:n]
            self.shapes[shape] = kept = grown
        return kept

    def draw(self, generator: torch.Generator, square_batch: int, shape: int) -> tuple[Tensor, Tensor]:
        """Latents (n, c, h, w) float32, sampled from the posteriors, and token ids (n, 2, t) of one shape."""
        kept = self.shapes[shape]
        if kept is None:
            raise ValueError(f"no encoded pictures of shape {SHAPES[shape]}")
        device = kept.mean.device
        index = torch.randint(kept.count, (batch_size(square_batch, shape),), generator=generator, device=device)
        mean, std = kept.mean[index].float(), kept.std[index].float()
        noise = torch.randn(mean.shape, generator=generator, device=device)
        return mean + std * noise, kept.ids[index].long()

    def draw_shape(self, rng: np.random.Generator) -> int:
        """A shape, as likely as encoded pictures of it are."""
        counts = np.array([0 if e is None else e.count for e in self.shapes], dtype=float)
        return int(rng.choice(len(SHAPES), p=counts / counts.sum()))


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and deviation of (n, h, w, 3) uint8 pictures' latents, scaled as the base sees them, in this dtype."""
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False  # batches of many sizes: trying kernels out for each takes longer
    posterior = vae.encode(to_pixels(images, vae.dtype)).latent_dist
    torch.backends.cudnn.benchmark = benchmark
    scale = vae.config["scaling_factor"]
    return (posterior.mean.float() * scale).to(dtype), (posterior.std.float() * scale).to(dtype)
