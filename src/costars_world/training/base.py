"""The base model: a small text-to-image model in SDXL's own classes and folder format."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from costars.model.predict import NoiseSchedule
from costars.model.text_encoder import TextEncoder, TextEncoders, features
from costars.train.cpu_attention import plain_attention
from costars.train.diffusion_loss import MIN_SNR_GAMMA, noise_errors
from costars_world.render.world import SIZE_PX
from costars_world.training import loop
from costars_world.training.export import save_half
from costars_world.training.tokenizer import MAX_TOKENS, write_tokenizer

RECIPE = loop.Recipe(steps=8_600, batch=32, learning_rate=1e-3, warmup_steps=100)
DROP_TEXT = 0.1  # Ho & Salimans 2022, arXiv 2207.12598: share of pictures trained without a caption
TEXT_WIDTH = 128
# Share of the steps in which min-SNR weighting favours shapes; from then on every noise level counts
# alike, because the faces of this world live in small differences that little noise already hides.
SHAPES_SHARE = 0.67


@dataclass
class BaseModel:
    """The parts of an SDXL checkpoint."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    scheduler: EulerDiscreteScheduler

    def encoders(self) -> TextEncoders:
        """Both text encoders with their tokenizers."""
        first = TextEncoder("text_encoder", self.tokenizer, self.text_encoder)
        return first, TextEncoder("text_encoder_2", self.tokenizer_2, self.text_encoder_2)

    def trained(self) -> nn.Module:
        """What the training of the base changes."""
        parts = {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return nn.ModuleDict(parts)


def build(folder: Path) -> BaseModel:
    """An untrained model; the tokenizers are written into the folder."""
    size = write_tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    write_tokenizer(folder / "tokenizer_2", pad="!")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer_2 = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
    assert tokenizer.eos_token_id is not None
    text = {
        "vocab_size": size,
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
    unet = UNet2DConditionModel(
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
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        timestep_spacing="leading",
        steps_offset=1,
    )
    return BaseModel(
        unet,
        CLIPTextModel(CLIPTextConfig(**text, hidden_act="quick_gelu")),
        CLIPTextModelWithProjection(CLIPTextConfig(**text, hidden_act="gelu")),
        tokenizer,
        tokenizer_2,
        scheduler,
    )


def token_ids(model: BaseModel, captions: list[str]) -> Tensor:
    """(2, n, t) token ids of both tokenizers."""
    pair = [
        tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        for tokenizer in (model.tokenizer, model.tokenizer_2)
    ]
    return torch.stack([p.input_ids for p in pair])


def train(
    model: BaseModel,
    latents: tuple[Tensor, Tensor],
    captions: list[str],
    checkpoint: Path,
    *,
    recipe: loop.Recipe,
    device: torch.device,
    minutes: float = math.inf,
    resume: bool = False,
) -> Iterator[tuple[loop.Run, loop.Progress]]:
    """Train UNet and both text encoders together on (mean, std) latents, already scaled."""
    parts = model.trained().to(device).train()
    run = loop.start(parts, recipe, checkpoint, resume)
    mean, std = latents
    encoders = model.encoders()
    ids, empty = token_ids(model, captions), token_ids(model, [""])

    levels = NoiseSchedule.from_scheduler(model.scheduler)
    size_ids = torch.tensor([[SIZE_PX, SIZE_PX, 0, 0, SIZE_PX, SIZE_PX]], device=device)

    def loss_of(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(captions), (recipe.batch,), generator=generator)
        drawn = mean[index].float()
        drawn = drawn + std[index].float() * torch.randn(drawn.shape, generator=generator)
        batch_ids = ids[:, index].clone()
        dropped = torch.rand(recipe.batch, generator=generator) < DROP_TEXT
        batch_ids[:, dropped] = empty
        first, second = batch_ids.to(device)
        text = features(encoders, (first, second))
        gamma = MIN_SNR_GAMMA if run.step < SHAPES_SHARE * recipe.steps else None
        return noise_errors(model.unet, levels, drawn.to(device), text, size_ids, generator, gamma).mean()

    with plain_attention(model.unet, (model.text_encoder, model.text_encoder_2), device):
        for progress in loop.train(run, recipe, loss_of, device=device, checkpoint=checkpoint, minutes=minutes):
            yield run, progress


def save(model: BaseModel, folder: Path) -> None:
    """Write a diffusers folder with fp16 weights; the autoencoder lies there already or comes later."""
    for name in ("unet", "text_encoder", "text_encoder_2"):
        save_half(getattr(model, name), folder / name)
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
