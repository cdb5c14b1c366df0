"""One prediction of a checkpoint's network: the call that samplers, training and EM evidence share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from costars.errors import ModelError

NO_RESIDUALS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Conditioning:
    """What the network reads beside the noisy latent and the timestep.

    tokens are (r, t, d). pooled (r, d) and size_ids (r, 6) or (1, 6) are read together; families whose text encoders
    give no pooled embedding (pooled is None) read neither. Where texts are of several lengths, lengths has the number
    of tokens of each row, and mask (r, t) is 1 on them and 0 on the padding after them.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    size_ids: Tensor | None = None
    lengths: tuple[int, ...] = ()
    mask: Tensor | None = None

    def rows(self, index: slice | Tensor) -> Conditioning:
        """The conditioning of these rows."""
        pooled = None if self.pooled is None else self.pooled[index]
        size_ids = None if self.size_ids is None else self.size_ids.expand(len(self.tokens), -1)[index]
        mask = None if self.mask is None else self.mask[index]
        lengths = self.lengths[index] if isinstance(index, slice) else ()  # an index on a device is not waited for
        return Conditioning(self.tokens[index], pooled, size_ids, lengths, mask)

    @property
    def added(self) -> dict[str, Tensor] | None:
        """added_cond_kwargs of diffusers' UNet and ControlNet."""
        if self.pooled is None:
            return None
        assert self.size_ids is not None, "pooled text is read together with size ids"
        return {"text_embeds": self.pooled, "time_ids": self.size_ids.expand(len(self.tokens), -1)}


def predict_noise(
    unet: UNet2DConditionModel,
    sample: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    residuals: Mapping[str, Any] = NO_RESIDUALS,
) -> Tensor:
    """(r, c, h, w) prediction for the noisy latents (r, c, h, w): noise, or velocity (see `NoiseSchedule.target`).

    t is one timestep or (r,); residuals are the additions of ControlNets (`controlnet.control_residuals`).
    """
    tokens, added = conditioning.tokens, conditioning.added
    masked = {} if conditioning.mask is None else {"encoder_attention_mask": conditioning.mask}
    predicted: Tensor = unet(sample, t, tokens, added_cond_kwargs=added, **masked, **residuals).sample
    return predicted


def join_pooled(embeddings: Iterable[Tensor | None]) -> Tensor | None:
    """(n, d) of n pooled embeddings (1, d); None where the family has none."""
    pooled = [embedding for embedding in embeddings if embedding is not None]
    return torch.cat(pooled) if pooled else None


def make_size_ids(original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """(6,) float32: original (height, width), crop (top, left), target (height, width) in px.

    They stay float32 in a model of half precision: the UNet embeds them as sines and cosines of up to one radian per
    px, and bfloat16 rounds 1023 px to 1024.
    Podell et al. 2023, arXiv 2307.01952, section 2.2.
    """
    return torch.tensor([*original, *crop, *target], dtype=torch.float32)


@dataclass(frozen=True)
class NoiseSchedule:
    """How noise is added at each training timestep, and what the network predicts of it.

    alphas (s,) are the cumulative shares of signal (Ho et al. 2020, arXiv 2006.11239); with velocity the network
    predicts v (Salimans & Ho 2022, arXiv 2202.00512), else the noise.
    """

    alphas: Tensor
    velocity: bool = False

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> NoiseSchedule:
        """The schedule of a diffusers scheduler. Raises ModelError for EDM's, whose noise levels are continuous."""
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ModelError(
                f"model: training with {type(scheduler).__name__} (EDM's noise levels) is not supported; train on a "
                "model with discrete timesteps, as SDXL base"
            )
        return cls(scheduler.alphas_cumprod, scheduler.config.prediction_type == "v_prediction")

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Latents (n, c, h, w) with noise of this shape added at timesteps t (n,)."""
        a = self._alphas(t)
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(n, c, h, w) that the network should predict from `add_noise` of the same arguments."""
        a = self._alphas(t)
        return a.sqrt() * noise - (1 - a).sqrt() * latents if self.velocity else noise

    def snr(self, t: Tensor) -> Tensor:
        """(n,) signal-to-noise ratio at timesteps t (n,)."""
        alphas = self.alphas.to(t.device)[t]
        return alphas / (1 - alphas)

    def _alphas(self, t: Tensor) -> Tensor:
        return self.alphas.to(t.device)[t].view(-1, 1, 1, 1)
