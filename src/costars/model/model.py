"""A loaded checkpoint: the only thing that holds weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from costars.errors import ModelError, SceneError
from costars.model.offload import Residence
from costars.model.text_encoder import NOTHING_LEARNED, TextEncoders, encode_text
from costars.types import ControlNet, LearnedWords, Text


@dataclass(frozen=True)
class Facts:
    """What costars needs to know of a checkpoint beside its weights.

    name is what the scene called it, family is "sdxl", sha256 is of the UNet's weight file;
    cell_px is how many px a latent cell spans; parts_sha256 {"model.vae": ...} are of the other weight files;
    notes are lines for the user on what its files do not say.
    """

    name: str
    family: str
    sha256: str
    size_px: tuple[int, int]
    cell_px: int
    latent_channels: int
    segmenter: str
    parts_sha256: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """One checkpoint on one device. max_rows bounds the UNet rows of one call (memory), 0: no bound.

    With little memory its modules are on the device only while they are at work: within reading(),
    drawing() and decode().
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoders: TextEncoders
    scheduler: Any
    facts: Facts
    device: torch.device
    dtype: torch.dtype
    max_rows: int = 0
    residence: Residence = field(default_factory=lambda: Residence("full", torch.device("cpu")))

    def reading(self) -> AbstractContextManager[None]:
        """Within the block the text encoders are at work."""
        return self.residence.at_work(*(e.module for e in self.encoders))

    def drawing(self, controls: Sequence[ControlNet] = ()) -> AbstractContextManager[None]:
        """Within the block the UNet is at work, and these ControlNets beside it."""
        return self.residence.at_work(self.unet, *(control.net for control in controls))

    def encode_text(
        self,
        prompt: str,
        words: Sequence[str] = (),
        clip_skip: int | None = None,
        learned: LearnedWords = NOTHING_LEARNED,
    ) -> Text:
        """Encode a prompt, with words that concepts were taught as, and find these words' positions in it."""
        with self.reading():
            return encode_text(self.encoders, prompt, words, self.device, clip_skip, learned)

    def with_max_rows(self, max_rows: int) -> Model:
        """The same model, its UNet called with at most this many rows at once."""
        return replace(self, max_rows=max_rows)

    def latent_size(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the latent grid for a (width, height) in px."""
        width, height = size_px
        step = self.facts.cell_px
        for name, px in (("width", width), ("height", height)):
            if px % step:
                near = max(step, step * round(px / step))
                raise SceneError(
                    f"size: {name} {px} does not fit this model; want a multiple of {step} px, e.g. {near}"
                )
        return height // self.facts.cell_px, width // self.facts.cell_px

    def initial_noise(self, size_px: tuple[int, int], seed: int) -> Tensor:
        """(1, c, h, w) unit noise, drawn on the CPU so that every device starts from the same."""
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (1, self.facts.latent_channels, *self.latent_size(size_px))
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(self.device, self.dtype)

    def size_ids(self, size_px: tuple[int, int]) -> Tensor:
        """(1, 6): original size, crop corner, target size; heights first (SDXL, section 2.2)."""
        width, height = size_px
        return torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=self.dtype)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Image.Image:
        """The picture of a latent (1, c, h, w)."""
        scaled = latent / self.vae.config["scaling_factor"]
        with self.residence.at_work(self.vae):
            pixels = self.vae.decode(scaled.to(self.vae.dtype)).sample[0].float()
        if not math.isfinite(float(pixels.sum())):
            raise ModelError("the decoder gave a picture that is not finite; use --dtype float32")
        array = pixels.clamp(-1, 1).add(1).mul(127.5).round().byte()
        return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())
