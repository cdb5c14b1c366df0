"""The base model: a small text-to-image model with SDXL's classes and folder format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from costars.model.families import SDXL
from costars.model.predict import Conditioning, NoiseSchedule
from costars.model.text_encoder import TextEncoder, TextEncoders, encode_ids
from costars.train.cpu_attention import eager_attention
from costars.train.diffusion_loss import MIN_SNR_GAMMA, noise_errors
from costars_world.render.world import SIZE_PX
from costars_world.training import loop
from costars_world.training.export import save_fp16
from costars_world.training.tokenizer import MAX_TOKENS, write_tokenizer

RECIPE = loop.Recipe(steps=8_600, batch_size=32, learning_rate=1e-3, warmup_steps=100)
CAPTION_DROPOUT = 0.1  # share of pictures trained without a caption (Ho & Salimans 2022, arXiv 2207.12598)
TEXT_WIDTH = 128
# Share of the steps with min-SNR weighting, which favours shapes. Later all noise levels have equal weight, because
# faces of this world differ by small details that low noise levels already hide.
MIN_SNR_SHARE = 0.67


@dataclass(kw_only=True)
class BaseModel:
    """The parts of an SDXL checkpoint."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    scheduler: EulerDiscreteScheduler

    def encoders(self) -> TextEncoders:
        """Return both text encoders with their tokenizers."""
        first, second = SDXL.text_encoders
        return (
            TextEncoder(first, self.tokenizer, self.text_encoder),
            TextEncoder(second, self.tokenizer_2, self.text_encoder_2),
        )

    def trainable_modules(self) -> nn.Module:
        """Return the modules that training changes."""
        parts = {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return nn.ModuleDict(parts)


def build(folder: Path) -> BaseModel:
    """Build an untrained model; writes the tokenizers into the folder."""
    vocab_size = write_tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    write_tokenizer(folder / "tokenizer_2", pad="!")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer_2 = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    text = _text_config(vocab_size, tokenizer)
    return BaseModel(
        unet=_build_unet(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text, hidden_act="quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text, hidden_act="gelu")),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            num_train_timesteps=1000,
            timestep_spacing="leading",
            steps_offset=1,
        ),
    )


def _text_config(vocab_size: int, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """Return what the configurations of both text encoders have in common."""
    assert tokenizer.eos_token_id is not None
    return {
        "vocab_size": vocab_size,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "max_position_embeddings": MAX_TOKENS,
        "projection_dim": TEXT_WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(96, 192, 224),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=(3, 6, 7),
        transformer_layers_per_block=1,
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + TEXT_WIDTH,
    )


def tokenize(model: BaseModel, captions: list[str]) -> Tensor:
    """Return the token ids (2, n, t) of both tokenizers."""
    pair = [
        tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        for tokenizer in (model.tokenizer, model.tokenizer_2)
    ]
    return torch.stack([p.input_ids for p in pair])


def train(
    model: BaseModel,
    latents: tuple[Tensor, Tensor],
    captions: list[str],
    options: loop.RunOptions,
) -> Iterator[tuple[loop.Run, loop.Progress]]:
    """Train the UNet and both text encoders on scaled latents, given as mean and standard deviation."""
    recipe, device = options.recipe, options.device
    run = loop.start(model.trainable_modules().to(device).train(), options)
    mean, std = latents
    encoders = model.encoders()
    ids, empty = tokenize(model, captions), tokenize(model, [""])
    schedule = NoiseSchedule.from_scheduler(model.scheduler)
    size_ids = torch.tensor([[SIZE_PX, SIZE_PX, 0, 0, SIZE_PX, SIZE_PX]], device=device)

    def compute_loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(captions), (recipe.batch_size,), generator=generator)
        sample = mean[index].float()
        sample = sample + std[index].float() * torch.randn(sample.shape, generator=generator)
        batch_ids = ids[:, index].clone()
        dropped = torch.rand(recipe.batch_size, generator=generator) < CAPTION_DROPOUT
        batch_ids[:, dropped] = empty
        first, second = batch_ids.to(device)
        tokens, pooled = encode_ids(encoders, (first, second))
        conditioning = Conditioning(tokens, pooled, size_ids)
        snr_gamma = MIN_SNR_GAMMA if run.step < MIN_SNR_SHARE * recipe.steps else None
        latents = sample.to(device)
        return noise_errors(model.unet, schedule, latents, conditioning, generator, snr_gamma=snr_gamma).mean()

    with eager_attention(model.unet, (model.text_encoder, model.text_encoder_2), device):
        for progress in loop.train(run, options, compute_loss):
            yield run, progress


def save(model: BaseModel, folder: Path) -> None:
    """Write a diffusers folder with fp16 weights, without the autoencoder."""
    for name in ("unet", "text_encoder", "text_encoder_2"):
        save_fp16(getattr(model, name), folder / name)
    model.scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.42.1",
        "force_zeros_for_empty_prompt": False,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
