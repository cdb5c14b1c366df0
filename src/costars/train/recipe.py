"""Settings of a training recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from costars.train.em.estep_masks import EStepConfig

MaskSource = Literal["learned", "frozen", "given"]


@dataclass(frozen=True, kw_only=True)
class EmConfig:
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
    em: EmConfig | None = None
    seed: int = 0


def flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as a flat dict with the names that `--set` takes, such as "em.rows_per_call"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in flatten_settings(value).items()}
        else:
            flat[name] = value
    return flat
