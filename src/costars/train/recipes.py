"""Training recipes: one value for each method and model family, every number with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from costars.model.families import FAMILIES, SD15, SDXL
from costars.train.em.estep_masks import EStepConfig

MaskSource = Literal["learned", "frozen", "given"]


@dataclass(frozen=True, kw_only=True)
class Em:
    """Settings of the EM recipe, which learns from images that show several concepts.

    masks: "learned" alternates E-steps with training, "frozen" runs one E-step before training (the paper's
    baseline when `estep.use_likelihood` is off), "given" reads masks from files (Break-a-Scene, the upper bound).
    The E-step reads attention layers whose cells span one of `attention_cell_px` pixels of an image of the model's
    native size, and sends `rows_per_call` timesteps through the UNet per call.
    """

    masks: MaskSource = "learned"
    refresh_every_steps: int = 50
    freeze_after_steps: int = 0  # no E-step after this many steps; 0: E-steps until the end (VCD)
    attention_cell_px: tuple[int, ...] = (32,)  # SD at 512 px: 16 x 16 cells, as in Break-a-Scene
    caption_template: str = "a photo of {}"  # {}: the concepts in the image
    rows_per_call: int = 10
    estep: EStepConfig = EStepConfig()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training run: what is trained, the optimizer, and the loss.

    unet: "lora", "keys_values" (those of cross-attention), "full" (all linear and convolution weights) or "none".
    num_new_tokens new words are learned per concept, each as vectors_per_token embeddings. The first word starts as
    embedding_init says, a second one always starts from the class word.
    """

    unet: Literal["lora", "keys_values", "full", "none"] = "lora"
    text_encoder: Literal["lora", "none"] = "none"
    lora_layers: Literal["attention", "transformer"] = "attention"  # of the UNet
    num_new_tokens: int = 0
    vectors_per_token: int = 1
    per_layer_embeddings: bool = False  # one embedding per cross-attention layer (P+, Voynov et al. 2023)
    embedding_init: Literal["class", "random"] = "class"
    rank: int = 8
    alpha: float = 8.0  # the weight change is alpha / rank * up @ down
    steps: int = 1000
    batch_size: int = 1
    gradient_accumulation_steps: int = 1
    unet_lr: float = 1e-4
    text_encoder_lr: float = 0.0
    embedding_lr: float = 0.0
    optimizer: Literal["adamw", "adafactor", "adamw8bit"] = "adamw"
    weight_decay: float = 0.01
    adam_beta2: float = 0.999
    lr_warmup_steps: int = 0
    lr_decay_fraction: float = 0.0  # linear decay to zero over the last fraction of the steps
    max_grad_norm: float = 1.0  # 0: no clipping
    snr_gamma: float | None = None  # min-SNR weighting (Hang et al. 2023, arXiv 2303.09556); None: off
    noise_offset: float = 0.0  # scale of a random constant added to each channel of the noise
    background_loss_weight: float = 1.0  # loss weight of cells outside the masks, for images with masks
    prior_loss_weight: float = 0.0  # of the class images (DreamBooth, Ruiz et al. 2023, equation 2)
    num_class_images: int = 0
    attention_loss_weight: float = 0.0  # keeps the new words' attention in the masks (Mix-of-Show, Gu et al. 2023)
    attention_full_identity: bool = True  # the second word attends to the whole mask (Mix-of-Show, reg_full_identity)
    embedding_norm_threshold: float = 0.0  # embeddings freeze when their mean norm reaches it (Mix-of-Show); 0: never
    # Precision of the forward pass; trained parameters are float32. auto: bf16 on devices with bf16 units.
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False  # less memory, about a third more time
    flip_augmentation: bool = False  # off: faces are not symmetric
    max_aspect_ratio: float = 2.0  # of the aspect-ratio buckets; longer images are cropped
    size_conditioning: bool = True  # SDXL gets each image's original size (Podell et al. 2023, section 2.2)
    embedding_only_steps: int = 0  # first steps, in which only embeddings are trained (phase 1 of Break-a-Scene)
    em: Em | None = None
    seed: int = 0


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
    em=Em(),
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
            em=Em(attention_cell_px=(8, 16), caption_template="{}", freeze_after_steps=100),
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


def flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as a flat dict with the names that `--set` takes, such as "em.rows_per_call"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in flatten_settings(value).items()}
        else:
            flat[name] = value
    return flat
