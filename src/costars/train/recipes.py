"""Default settings of each recipe for each model family, every number with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from costars.model.families import FAMILIES, SD15, SDXL
from costars.train.recipe import EmConfig, Recipe

_LORA = Recipe(
    text_encoder="lora", rank=32, alpha=16, unet_lr=1e-4, text_encoder_lr=5e-6, steps=1000, max_grad_norm=1.0
)
# The built-in model was trained on squares of one size, without size conditioning. Its images come with masks;
# a background weight of 0.1 preserves the setting (docs/decisions/0014).
_SMALL: Mapping[str, Any] = {"max_aspect_ratio": 1.0, "size_conditioning": False, "background_loss_weight": 0.1}
_BUILTIN_LORA = Recipe(
    text_encoder="lora",
    lora_layers="transformer",
    rank=5,
    alpha=5,
    steps=320,
    batch_size=8,
    unet_lr=2e-3,
    text_encoder_lr=1e-3,
    weight_decay=0.0,
    adam_beta2=0.99,
    lr_warmup_steps=10,
    lr_decay_fraction=0.5,
    max_grad_norm=0.0,
    **_SMALL,
)
_DREAMBOOTH = Recipe(unet="full", unet_lr=5e-6, steps=800, prior_loss_weight=1.0, num_class_images=200)
# diffusers' scripts multiply both learning rates by the effective batch size (--scale_lr): 5e-4 by 4, 1e-5 by 2.
_INVERSION = Recipe(unet="none", num_new_tokens=1, embedding_lr=2e-3, steps=3000, gradient_accumulation_steps=4)
_CUSTOM = Recipe(
    unet="keys_values",
    num_new_tokens=1,
    unet_lr=2e-5,
    embedding_lr=2e-5,
    steps=500,
    batch_size=2,
    prior_loss_weight=1.0,
    num_class_images=200,
)
_EDLORA = Recipe(
    text_encoder="lora",
    num_new_tokens=2,
    per_layer_embeddings=True,
    embedding_init="random",
    rank=4,
    alpha=4,
    unet_lr=1e-4,
    text_encoder_lr=1e-5,
    embedding_lr=1e-3,
    steps=1000,
    batch_size=4,
    lr_decay_fraction=1.0,
    noise_offset=0.01,
    background_loss_weight=0.0,
    attention_loss_weight=0.01,
    embedding_norm_threshold=0.55,
)

_EM = Recipe(
    text_encoder="lora",
    num_new_tokens=1,
    rank=16,
    alpha=16,
    unet_lr=1e-4,
    text_encoder_lr=1e-5,
    embedding_lr=5e-4,
    steps=800,
    embedding_only_steps=400,
    background_loss_weight=0.0,
    attention_loss_weight=0.01,
    em=EmConfig(),
)

# {recipe: {family: settings}}; "builtin" is the bundled model, its numbers were tuned on it.
RECIPES: Mapping[str, Mapping[str, Recipe]] = {
    "lora": {  # DreamBooth LoRA of diffusers' README, with rank and alpha of common community files
        SD15.name: _LORA,
        SDXL.name: replace(_LORA, gradient_accumulation_steps=4, steps=500, gradient_checkpointing=True),
        "builtin": _BUILTIN_LORA,
    },
    "dreambooth": {  # Ruiz et al. 2023, arXiv 2208.12242; numbers of diffusers' README
        SD15.name: _DREAMBOOTH,
        # No published numbers for full SDXL fine-tuning: learning rate and optimizer are ours, not validated.
        SDXL.name: replace(_DREAMBOOTH, unet_lr=1e-6, optimizer="adafactor", gradient_checkpointing=True),
        "builtin": replace(
            _DREAMBOOTH, unet_lr=1e-4, steps=320, batch_size=4, num_class_images=32, lr_decay_fraction=0.5, **_SMALL
        ),
    },
    "textual-inversion": {  # Gal et al. 2022, arXiv 2208.01618; numbers of diffusers' READMEs
        SD15.name: _INVERSION,
        SDXL.name: replace(_INVERSION, steps=500, gradient_checkpointing=True),
        "builtin": replace(
            _INVERSION,
            steps=400,
            batch_size=8,
            gradient_accumulation_steps=1,
            embedding_lr=2e-2,
            vectors_per_token=4,
            **_SMALL,
        ),
    },
    "custom-diffusion": {  # Kumari et al. 2023, arXiv 2212.04488; numbers of its own and diffusers' code
        SD15.name: _CUSTOM,
        SDXL.name: replace(_CUSTOM, gradient_checkpointing=True),
        "builtin": replace(
            _CUSTOM,
            steps=320,
            batch_size=4,
            unet_lr=1e-3,
            embedding_lr=1e-2,
            num_class_images=32,
            lr_decay_fraction=0.5,
            **_SMALL,
        ),
    },
    "ed-lora": {  # Gu et al. 2023, arXiv 2305.18292
        SD15.name: _EDLORA,
        # Concept Conductor's learning rates, batch size and UNet rank. It configures the text encoders separately;
        # here both use the first encoder's learning rates (1e-3, 1e-5) and the second encoder's rank (32, the first
        # has 4) and norm threshold (1.5, the first has 0.55). Concept Conductor trains 2000 steps per image.
        SDXL.name: replace(
            _EDLORA,
            rank=32,
            alpha=32,
            unet_lr=5e-5,
            steps=2000,
            batch_size=1,
            embedding_norm_threshold=1.5,
            gradient_checkpointing=True,
        ),
        "builtin": replace(
            _EDLORA,
            lora_layers="transformer",
            rank=5,
            alpha=5,
            steps=320,
            batch_size=8,
            unet_lr=2e-3,
            text_encoder_lr=1e-3,
            embedding_lr=1e-2,
            weight_decay=0.0,
            lr_decay_fraction=0.5,
            embedding_norm_threshold=0.0,
            **_SMALL,
        ),
    },
    "em": {  # VCD, with Break-a-Scene's losses, and its numbers where VCD gives none
        SD15.name: _EM,
        SDXL.name: replace(_EM, gradient_checkpointing=True),
        "builtin": replace(
            _EM,
            num_new_tokens=1,
            vectors_per_token=2,
            steps=240,
            batch_size=8,
            embedding_lr=1e-2,
            unet_lr=1e-3,
            text_encoder_lr=5e-4,
            lora_layers="transformer",
            rank=5,
            alpha=5,
            embedding_only_steps=100,
            attention_loss_weight=0.1,  # 0.01: masks degrade with every E-step; 0.1: they improve; 1: less so
            lr_decay_fraction=0.5,
            # Masks degrade once more than embeddings is trained: attention then shrinks to the most telling parts.
            em=EmConfig(attention_cell_px=(8, 16), caption_template="{}", freeze_after_steps=100),
            max_aspect_ratio=1.0,
            size_conditioning=False,
        ),
    },
}
BUILTIN = "builtin"


def recipe_for(name: str, family: str, model: str) -> Recipe:
    """Default settings of the recipe for a model of this family and name."""
    by_family = RECIPES[name]
    return by_family[BUILTIN if model == BUILTIN else FAMILIES[family].recipes]
