"""The base: a text-to-image model in SDXL's own classes, and its loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from costars_world.world2.training.autoencoder import LATENT_CHANNELS
from costars_world.world2.training.optimizer import Rates
from costars_world.world2.training.tokenizer import MAX_TOKENS, load_tokenizers, write_tokenizers
from costars_world.world2.training.world import World

RATES = Rates(learning_rate=1e-3, warmup_steps=300, weight_decay=0.01)


@dataclass(frozen=True)
class BaseRecipe:
    """Sizes, noise and rates of the base."""

    rates: Rates = RATES
    batch: int = 256  # square pictures; a GPU step is then longer than Python needs to start it
    drop_text: float = 0.1  # Ho & Salimans 2022, arXiv 2207.12598
    # Lin et al. 2023, arXiv 2305.08891: with SDXL's own noise the last level still shows the picture's mean
    # colour, sampling starts without it, and drawings turn grey or dark. So the last level is pure noise,
    # which only velocity (Salimans & Ho 2022, arXiv 2202.00512) can be predicted from.
    prediction: str = "v_prediction"
    # Velocity counts an error of the picture 1 + snr; in the first part of the training that is
    # 1 + min(snr, gamma) (Hang et al. 2023, arXiv 2303.09556): shapes before details. Later every noise
    # level counts alike, because faces live in small differences that little noise already hides.
    gamma: float = 5.0
    shapes_share: float = 0.55
    text_width: int = 160  # version 1 had 128 and 3 layers for half the words
    text_layers: int = 4
    text_heads: int = 5
    # 21.8 M parameters. Two transformers per layer at the finest levels, where words find their figures: 1.6
    # times the arithmetic of version 1 in the same time on a CPU, because its widths fit better.
    widths: tuple[int, ...] = (128, 192, 192)
    transformers: tuple[int, ...] = (2, 2, 1)


@dataclass
class Base:
    """The parts of an SDXL checkpoint, without the autoencoder."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    scheduler: EulerDiscreteScheduler

    def trained(self) -> nn.ModuleDict:
        """What the training changes."""
        parts = {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return nn.ModuleDict(parts)


def build_base(world: World, folder: Path, recipe: BaseRecipe) -> Base:
    """An untrained base for a world's words; the tokenizers are written into the folder."""
    size = write_tokenizers(folder, world.words)
    tokenizer, tokenizer_2 = load_tokenizers(folder)
    text = {
        "vocab_size": size,
        "hidden_size": recipe.text_width,
        "intermediate_size": 4 * recipe.text_width,
        "num_attention_heads": recipe.text_heads,
        "num_hidden_layers": recipe.text_layers,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": recipe.text_width,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Base(
        _build_unet(recipe),
        CLIPTextModel(CLIPTextConfig(**text, hidden_act="quick_gelu")),
        CLIPTextModelWithProjection(CLIPTextConfig(**text, hidden_act="gelu")),
        tokenizer,
        tokenizer_2,
        build_scheduler(recipe),
    )


def _build_unet(recipe: BaseRecipe) -> UNet2DConditionModel:
    levels = len(recipe.widths)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=recipe.widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        attention_head_dim=tuple(w // 32 for w in recipe.widths),  # the number of heads, each 32 wide
        transformer_layers_per_block=recipe.transformers,
        cross_attention_dim=2 * recipe.text_width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + recipe.text_width,
    )


def build_scheduler(recipe: BaseRecipe) -> EulerDiscreteScheduler:
    """SDXL's noise levels; with velocity the last one is pure noise and sampling starts there."""
    velocity = recipe.prediction == "v_prediction"
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type=recipe.prediction,
        rescale_betas_zero_snr=velocity,
        timestep_spacing="trailing" if velocity else "leading",
        steps_offset=1,
    )


def encode_text(
    text_encoder: CLIPTextModel, text_encoder_2: CLIPTextModelWithProjection, ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Token ids (n, 2, t) to SDXL's text: (n, t, d) from the layer before the last of both, and (n, p) pooled."""
    first = text_encoder(ids[:, 0], output_hidden_states=True)
    second = text_encoder_2(ids[:, 1], output_hidden_states=True)
    tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return tokens, second.text_embeds


def size_ids(size_px: tuple[int, int], device: torch.device) -> Tensor:
    """(1, 6) SDXL's original size, crop corner and target size of a whole picture of (w, h) px."""
    width, height = size_px
    return torch.tensor([[height, width, 0, 0, height, width]], device=device)


class Denoiser(nn.Module):
    """UNet and text encoders as one module, so that they can be trained and compiled together."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.parts = base.trained()

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor, sizes: Tensor) -> Tensor:
        """Prediction (n, c, h, w) for noisy latents at timesteps (n,), token ids (n, 2, t), sizes (n, 6)."""
        tokens, pooled = encode_text(self.parts["text_encoder"], self.parts["text_encoder_2"], ids)
        added = {"text_embeds": pooled, "time_ids": sizes}
        return self.parts["unet"](noisy, t, tokens, added_cond_kwargs=added, return_dict=False)[0]


@dataclass(frozen=True)
class Noise:
    """alphas (1000,) cumulative, on the device; what is predicted is velocity or the noise."""

    alphas: Tensor
    velocity: bool

    @classmethod
    def of(cls, scheduler: EulerDiscreteScheduler, device: torch.device) -> Noise:
        """As a diffusers scheduler says."""
        velocity = scheduler.config["prediction_type"] == "v_prediction"
        return cls(scheduler.alphas_cumprod.float().to(device), velocity)

    def add(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents and what is to be predicted from them, (n, c, h, w) each, at timesteps (n,)."""
        a = self.alphas[t].view(-1, 1, 1, 1)
        signal, spread = a.sqrt(), (1 - a).sqrt()
        target = signal * noise - spread * latents if self.velocity else noise
        return signal * latents + spread * noise, target

    def weights(self, t: Tensor, gamma: float | None) -> Tensor:
        """(n,) weight of each squared error; all 1 where gamma is None."""
        if gamma is None:
            return torch.ones_like(self.alphas[t])
        snr = self.alphas[t] / (1 - self.alphas[t]).clamp_min(1e-8)
        capped = snr.clamp(max=gamma)
        return (capped + 1) / (snr + 1) if self.velocity else capped / snr.clamp_min(1e-8)


def errors(
    denoiser: nn.Module, noise: Noise, latents: Tensor, ids: Tensor, sizes: Tensor, t: Tensor, drawn: Tensor
) -> Tensor:
    """(n,) mean squared errors of the predictions for latents (n, c, h, w) with this noise at timesteps t."""
    noisy, target = noise.add(latents, drawn, t)
    dtype = next(denoiser.parameters()).dtype
    predicted = denoiser(noisy.to(dtype), t, ids, sizes.expand(len(latents), 6))
    return (predicted.float() - target).square().mean(dim=(1, 2, 3))
