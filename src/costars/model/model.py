"""A loaded checkpoint: the only value with weights."""

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
from costars.model.offload import Offload
from costars.model.predict import make_size_ids
from costars.model.text_encoder import NO_LEARNED_WORDS, Emphasis, TextEncoders, encode_text, zero_features
from costars.model.vae_latents import scale_latents, unscale_latents
from costars.types import ControlNet, LearnedWords, Text


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is known about a checkpoint, without its weights.

    name is the scene's name for it; family is a key of `families.FAMILIES`; sha256 is of the UNet's weight file;
    cell_px is the side of a latent cell in px; parts_sha256 {"model.vae": ...} are of the other weight files;
    force_zeros says that the features of an empty negative prompt are zeros (diffusers' force_zeros_for_empty_prompt);
    notes are lines for the user about what the files do not state.
    """

    name: str
    family: str
    sha256: str
    size_px: tuple[int, int]
    cell_px: int
    latent_channels: int
    segmenter: str
    parts_sha256: Mapping[str, str] = field(default_factory=dict)
    force_zeros: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Model:
    """One checkpoint on one device. max_rows limits the rows of one UNet call; 0 is no limit.

    In the smaller memory tiers modules are on the device only within text_encoders_on_device(), unet_on_device() and
    decode().
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoders: TextEncoders
    scheduler: Any
    info: ModelInfo
    device: torch.device
    dtype: torch.dtype
    max_rows: int = 0
    offload: Offload = field(default_factory=lambda: Offload("full", torch.device("cpu")))

    @property
    def latent_dtype(self) -> torch.dtype:
        """Number format of latents between UNet calls: at least float32, whatever the weights are."""
        return torch.promote_types(self.dtype, torch.float32)

    def text_encoders_on_device(self) -> AbstractContextManager[None]:
        """Within the block the text encoders can be called."""
        return self.offload.on_device(*(e.module for e in self.encoders))

    def unet_on_device(self, controls: Sequence[ControlNet] = ()) -> AbstractContextManager[None]:
        """Within the block the UNet and these ControlNets can be called."""
        return self.offload.on_device(self.unet, *(control.net for control in controls))

    def encode_text(
        self,
        prompt: str,
        words: Sequence[str] = (),
        clip_skip: int | None = None,
        learned: LearnedWords = NO_LEARNED_WORDS,
        emphasis: Emphasis = "no_norm",
    ) -> Text:
        """Encode a prompt with these learned words, and find the token positions of words (see `encode_text`)."""
        with self.text_encoders_on_device():
            return encode_text(self.encoders, prompt, words, self.device, clip_skip, learned, emphasis)

    def encode_negative(
        self,
        prompt: str = "",
        clip_skip: int | None = None,
        learned: LearnedWords = NO_LEARNED_WORDS,
        emphasis: Emphasis = "no_norm",
        force_zeros: bool | None = None,
    ) -> Text:
        """Encode a negative prompt; an empty one has zeros for features if force_zeros, by default as the files say."""
        text = self.encode_text(prompt, (), clip_skip, learned, emphasis)
        zeros = self.info.force_zeros if force_zeros is None else force_zeros
        return zero_features(text) if zeros and not prompt.strip() else text

    def with_max_rows(self, max_rows: int) -> Model:
        """The same model with another limit on the rows of one UNet call."""
        return replace(self, max_rows=max_rows)

    def latent_size(self, size_px: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the latent for a picture of (width, height) px. Raises SceneError if the size is no multiple."""
        width, height = size_px
        step = self.info.cell_px
        for name, px in (("width", width), ("height", height)):
            if px % step:
                near = max(step, step * round(px / step))
                raise SceneError(
                    f"size: {name} {px} does not fit this model; want a multiple of {step} px, e.g. {near}"
                )
        return height // self.info.cell_px, width // self.info.cell_px

    def initial_noise(self, size_px: tuple[int, int], seed: int) -> Tensor:
        """(1, c, h, w) standard normal noise, drawn on the CPU so that every device starts from the same noise."""
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (1, self.info.latent_channels, *self.latent_size(size_px))
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(self.device, self.latent_dtype)

    def size_ids(self, size_px: tuple[int, int]) -> Tensor:
        """(1, 6) float32 size ids of an uncropped picture of (width, height) px (see `predict.make_size_ids`)."""
        width, height = size_px
        return make_size_ids((height, width), (0, 0), (height, width))[None].to(self.device)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Image.Image:
        """The picture of a latent (1, c, h, w). Raises ModelError if it is not finite."""
        unscaled = unscale_latents(latent, self.vae.config)
        with self.offload.on_device(self.vae):
            pixels = self.vae.decode(unscaled.to(self.vae.dtype)).sample[0].float()
        if not math.isfinite(float(pixels.sum())):
            if not bool(latent.isfinite().all()):
                raise ModelError(
                    f"model {self.info.name!r}: the denoised latent is not finite; if --dtype float32 does not help, "
                    "the checkpoint or a concept has damaged weights"
                )
            raise ModelError("the VAE decoded a picture that is not finite; use --dtype float32")
        array = pixels.clamp(-1, 1).add(1).mul(127.5).round().byte()
        return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(n, c, h, w) float32 latents of pictures (n, 3, H, W) in [-1, 1]: the scaled mean of the VAE's posterior.

        Raises ModelError for a VAE without an encoder.
        """
        if self.vae.encoder is None:
            raise ModelError(
                f"model {self.info.name!r}: its VAE has no encoder, so it can draw pictures but not read them; "
                "set checkpoint.vae to a whole VAE"
            )
        with self.offload.on_device(self.vae):
            mean = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist.mean
        return scale_latents(mean.float(), self.vae.config)
