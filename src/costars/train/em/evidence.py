"""Collect the evidence of the E-step from passes of images through the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from costars.errors import TrainError
from costars.model.families import attention_depths, attention_layers
from costars.model.model import Model
from costars.model.predict import Conditioning, NoiseSchedule
from costars.sample.attention_rules import find_grid
from costars.sample.word_maps import standardize_maps
from costars.train.attention_maps import AttentionRecorder
from costars.train.diffusion_loss import squared_errors
from costars.train.em.captions import GroupCaptions, Names
from costars.train.em.encoded_images import EncodedImage
from costars.train.em.estep_masks import Evidence
from costars.train.recipe import EmConfig
from costars.train.trainable import Trainable


@dataclass(frozen=True)
class AttentionResolutions:
    """The attention layers to read: those whose queries span one of these px of the image.

    latent_px is the px that one latent cell spans.
    """

    latent_px: int
    px: tuple[int, ...]

    def includes(self, queries: int, shape: Sequence[int]) -> bool:
        """Whether layers with this number of queries are read, for latents (..., h, w)."""
        return round(self.latent_px * math.sqrt(shape[-2] * shape[-1] / queries)) in self.px

    def finest(self, shape: Sequence[int]) -> int:
        """The number of queries of the finest layers that are read, for latents (..., h, w)."""
        return math.prod(math.ceil(side * self.latent_px / min(self.px)) for side in shape[-2:])


def select_resolutions(model: Model, px: Sequence[int]) -> AttentionResolutions:
    """The resolutions with these px per query; raises TrainError if the model has none of one, mid block aside."""
    available = [model.info.cell_px << depth for depth in attention_depths(attention_layers(model.unet))]
    if missing := sorted({*px} - {*available}):
        raise TrainError(
            f"settings.em.attention_cell_px: {list(px)}; the model has no attention layer with cells of {missing[0]} "
            f"px, use some of {', '.join(map(str, available))}"
        )
    return AttentionResolutions(model.info.cell_px, tuple(px))


@dataclass(frozen=True, kw_only=True)
class EvidenceCollector:
    """Runs images with captions of their concepts through the model in its current state."""

    model: Model
    em: EmConfig
    trainable: Trainable
    captions: GroupCaptions
    recorder: AttentionRecorder
    resolutions: AttentionResolutions

    def collect(self, image: EncodedImage, seed: int) -> Evidence:
        """The evidence for an image's foreground concepts; deterministic for a seed."""
        foreground = image.source.foreground
        if not self.em.estep.use_likelihood:
            maps = self._average_maps(image, seed)
            return Evidence({name: maps[name] for name in foreground})
        with self.recorder.recording_self_attention(self.resolutions.finest(image.latent.shape)) as self_attention:
            maps = self._average_maps(image, seed)
        errors = {name: self._average_errors(name, image, seed) for name in foreground} if len(foreground) > 1 else {}
        return Evidence({name: maps[name] for name in foreground}, self_attention.total, errors)

    def _average_maps(self, image: EncodedImage, seed: int) -> dict[str, Tensor]:
        """Cross-attention maps {concept: (h, w)} under the image's full caption, averaged over random timesteps."""
        names, size, sums = image.source.names, image.latent.shape[-2:], dict[str, Tensor]()
        generator = torch.Generator().manual_seed(seed)
        for count in self._batch_sizes():
            rows = [names] * count
            conditioning = self._encode(rows, image)
            with self.recorder.recording(self.captions.token_positions(rows), conditioning.tokens.shape[1]) as maps:
                self._squared_errors(image, conditioning, generator)
            for layer, attention in maps.layers.items():
                if self.resolutions.includes(attention.shape[-1], image.latent.shape):
                    sums[layer] = attention.sum(dim=0) + sums.get(layer, 0)
        layers = torch.stack([_to_latent_grid(total, size) for total in sums.values()])
        return dict(zip(names, layers.mean(dim=0), strict=True))

    def _average_errors(self, name: str, image: EncodedImage, seed: int) -> Tensor:
        """(h, w) denoising error under the concept's prompt, averaged over random timesteps.

        All concepts of an image get the same timesteps and noise.
        """
        generator = torch.Generator().manual_seed(seed)
        errors = [
            self._squared_errors(image, self._encode([(name,)] * count, image), generator)
            for count in self._batch_sizes()
        ]
        return torch.cat(errors).mean(dim=0)

    def _batch_sizes(self) -> Iterator[int]:
        """Rows of each UNet call, in total the number of timesteps."""
        remaining = self.em.estep.timesteps
        while remaining:
            count = min(self.em.rows_per_call, remaining)
            yield count
            remaining -= count

    def _encode(self, rows: Sequence[Names], image: EncodedImage) -> Conditioning:
        tokens, pooled = self.captions.encode(self.model.encoders, rows, self.trainable.embeddings)
        return Conditioning(tokens, pooled, image.size_ids)

    def _squared_errors(self, image: EncodedImage, conditioning: Conditioning, generator: torch.Generator) -> Tensor:
        """(n, h, w) squared errors at random timesteps, averaged over channels."""
        latents = image.latent.expand(len(conditioning.tokens), -1, -1, -1)
        schedule = NoiseSchedule.from_scheduler(self.model.scheduler)
        return squared_errors(self.model.unet, schedule, latents, conditioning, generator)[0].mean(dim=1)


def _to_latent_grid(attention: Tensor, size: Sequence[int]) -> Tensor:
    """(n, h, w) of one layer's attention (n, queries), standardized and resized to the latent's grid."""
    maps = standardize_maps(attention.unflatten(1, find_grid(attention.shape[1], size)))[None]
    return interpolate(maps, size, mode="bicubic", align_corners=False)[0]
