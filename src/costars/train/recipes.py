"""How concepts are taught: one value for each recipe and family of models, every number with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from costars.train.em.estep_masks import Estep

MaskSource = Literal["learned", "frozen", "given"]


@dataclass(frozen=True)
class Em:
    """How masks come to be where pictures are entangled: learned in turns with the words, taken once and frozen
    (the paper's baseline where estep.likelihood is off), or given by a person (Break-a-Scene, the upper bound).

    Maps are read where a cell of attention spans one of cells_px, of pictures of the model's own size; rows are
    how many timesteps go through the UNet at once. caption names the concepts of a picture.
    """

    masks: MaskSource = "learned"
    refresh: int = 50  # steps
    until: int = 0  # masks stay as they are after so many steps; 0: they are made anew to the end (VCD)
    cells_px: tuple[int, ...] = (32,)  # SD at 512 px: 16 x 16, as Break-a-Scene
    caption: str = "a photo of {}"
    rows: int = 10
    estep: Estep = Estep()


@dataclass(frozen=True)
class Recipe:
    """What is trained, how fast, and what counts as an error.

    unet and text: low-rank layers ("lora"), keys and values of cross-attention, every matrix and kernel
    ("whole"), or nothing. words new words are learned, each of so many vectors; the first starts from the
    class word or at random, a second one always from the class word. Rates are of the optimizer, the last
    decay_share of the steps falls to zero in a line.
    """

    unet: Literal["lora", "keys_values", "whole", "none"] = "lora"
    text: Literal["lora", "none"] = "none"
    layers: Literal["attention", "transformer"] = "attention"  # which of the UNet have low-rank ones beside them
    words: int = 0
    vectors: int = 1
    per_layer: bool = False  # a vector for each cross-attention layer (P+, Voynov et al. 2023)
    start: Literal["class", "random"] = "class"
    rank: int = 8
    alpha: float = 8.0  # change = alpha / rank * up @ down
    steps: int = 1000
    batch: int = 1
    accumulate: int = 1
    unet_rate: float = 1e-4
    text_rate: float = 0.0
    word_rate: float = 0.0
    optimizer: Literal["adamw", "adafactor", "adamw8bit"] = "adamw"
    weight_decay: float = 0.01
    beta2: float = 0.999
    warmup_steps: int = 0
    decay_share: float = 0.0
    clip_norm: float = 1.0  # 0: gradients are not clipped
    gamma: float | None = None  # min-SNR (Hang et al. 2023, arXiv 2303.09556); None: every noise level counts alike
    noise_offset: float = 0.0  # a constant for each channel, added to the noise
    outside_weight: float = 1.0  # how much a cell outside the masks counts, where there are masks
    prior_weight: float = 0.0  # of the class pictures (DreamBooth, Ruiz et al. 2023, equation 2)
    prior_pictures: int = 0
    attention_weight: float = 0.0  # keeps the words' attention in the masks (Mix-of-Show, Gu et al. 2023)
    whole_figure: bool = True  # the class word looks at all of the figure, not merely at nothing else
    norm_stop: float = 0.0  # words stop where their mean norm reaches this (Mix-of-Show); 0: never
    # Of what the UNet computes; what is trained is in float32. auto: bf16 where the device has units for it.
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    checkpointing: bool = False  # less memory, a third more time
    flips: bool = False  # nobody's face is its own mirror picture
    longest: float = 2.0  # sides of a batch are at most 1 to this; what a picture has beyond is cut away
    own_size: bool = True  # SDXL is told each picture's own size (Podell et al. 2023, section 2.2)
    words_first: int = 0  # steps in which the words alone learn (Break-a-Scene's first phase)
    em: Em | None = None
    seed: int = 0


_LORA = Recipe(text="lora", rank=32, alpha=16, unet_rate=1e-4, text_rate=5e-6, steps=1000, clip_norm=1.0)
# The built-in model was trained on squares of one size, and told of nothing else; its pictures come with masks, and
# a tenth of what lies outside keeps the place (docs/decisions/0014).
_SMALL: Mapping[str, Any] = {"longest": 1.0, "own_size": False, "outside_weight": 0.1}
_BUILTIN_LORA = Recipe(
    text="lora",
    layers="transformer",
    rank=5,
    alpha=5,
    steps=320,
    batch=8,
    unet_rate=2e-3,
    text_rate=1e-3,
    weight_decay=0.0,
    beta2=0.99,
    warmup_steps=10,
    decay_share=0.5,
    clip_norm=0.0,
    **_SMALL,
)
_DREAMBOOTH = Recipe(unet="whole", unet_rate=5e-6, steps=800, prior_weight=1.0, prior_pictures=200)
# diffusers' scripts multiply the rates of both by the batch, accumulation included (--scale_lr): 5e-4 by 4, 1e-5 by 2.
_INVERSION = Recipe(unet="none", words=1, word_rate=2e-3, steps=3000, accumulate=4)
_CUSTOM = Recipe(
    unet="keys_values",
    words=1,
    unet_rate=2e-5,
    word_rate=2e-5,
    steps=500,
    batch=2,
    prior_weight=1.0,
    prior_pictures=200,
)
_EDLORA = Recipe(
    text="lora",
    words=2,
    per_layer=True,
    start="random",
    rank=4,
    alpha=4,
    unet_rate=1e-4,
    text_rate=1e-5,
    word_rate=1e-3,
    steps=1000,
    batch=4,
    decay_share=1.0,
    noise_offset=0.01,
    outside_weight=0.0,
    attention_weight=0.01,
    norm_stop=0.55,
)

_EM = Recipe(
    text="lora",
    words=1,
    rank=16,
    alpha=16,
    unet_rate=1e-4,
    text_rate=1e-5,
    word_rate=5e-4,
    steps=800,
    words_first=400,
    outside_weight=0.0,
    attention_weight=0.01,
    em=Em(),
)

# {recipe: {family: how}}; "builtin" is the model that ships, whose numbers were found by trial on it.
RECIPES: Mapping[str, Mapping[str, Recipe]] = {
    "lora": {  # DreamBooth-LoRA of diffusers' README, at a rank and alpha that community files have
        "sd15": _LORA,
        "sdxl": replace(_LORA, accumulate=4, steps=500, checkpointing=True),
        "builtin": _BUILTIN_LORA,
    },
    "dreambooth": {  # Ruiz et al. 2023, arXiv 2208.12242; numbers of diffusers' README
        "sd15": _DREAMBOOTH,
        # Nobody published numbers for all of SDXL's UNet: rate and optimizer are ours, to be tried.
        "sdxl": replace(_DREAMBOOTH, unet_rate=1e-6, optimizer="adafactor", checkpointing=True),
        "builtin": replace(
            _DREAMBOOTH, unet_rate=1e-4, steps=320, batch=4, prior_pictures=32, decay_share=0.5, **_SMALL
        ),
    },
    "textual-inversion": {  # Gal et al. 2022, arXiv 2208.01618; numbers of diffusers' READMEs
        "sd15": _INVERSION,
        "sdxl": replace(_INVERSION, steps=500, checkpointing=True),
        "builtin": replace(_INVERSION, steps=400, batch=8, accumulate=1, word_rate=2e-2, vectors=4, **_SMALL),
    },
    "custom-diffusion": {  # Kumari et al. 2023, arXiv 2212.04488; numbers of its own and diffusers' code
        "sd15": _CUSTOM,
        "sdxl": replace(_CUSTOM, checkpointing=True),
        "builtin": replace(
            _CUSTOM, steps=320, batch=4, unet_rate=1e-3, word_rate=1e-2, prior_pictures=32, decay_share=0.5, **_SMALL
        ),
    },
    "ed-lora": {  # Gu et al. 2023, arXiv 2305.18292
        "sd15": _EDLORA,
        # Concept Conductor's rates, batch and rank of the UNet and of the first encoder's words. It gives each text
        # encoder its own, where here the first one's rates (1e-3, 1e-5) and the second one's rank (32; its first has 4)
        # and norm (1.5; its first stops at 0.55) are both's, and it takes 2000 steps for each picture.
        "sdxl": replace(
            _EDLORA, rank=32, alpha=32, unet_rate=5e-5, steps=2000, batch=1, norm_stop=1.5, checkpointing=True
        ),
        "builtin": replace(
            _EDLORA,
            layers="transformer",
            rank=5,
            alpha=5,
            steps=320,
            batch=8,
            unet_rate=2e-3,
            text_rate=1e-3,
            word_rate=1e-2,
            weight_decay=0.0,
            decay_share=0.5,
            norm_stop=0.0,
            **_SMALL,
        ),
    },
    "em": {  # VCD (seed 004's algorithm), with Break-a-Scene's losses and numbers where it is silent
        "sd15": _EM,
        "sdxl": replace(_EM, checkpointing=True),
        "builtin": replace(
            _EM,
            words=1,
            vectors=2,
            steps=240,
            batch=8,
            word_rate=1e-2,
            unet_rate=1e-3,
            text_rate=5e-4,
            layers="transformer",
            rank=5,
            alpha=5,
            words_first=100,
            attention_weight=0.1,  # at 0.01 masks got worse with every refresh, at 0.1 better, at 1 less so
            decay_share=0.5,
            # Masks get worse once more than words learns: attention then keeps to what is most telling of a figure.
            em=Em(cells_px=(8, 16), caption="{}", until=100),
            longest=1.0,
            own_size=False,
        ),
    },
}
BUILTIN = "builtin"
_ALIKE = {"sd2": "sd15"}


def recipe_for(name: str, family: str, model: str) -> Recipe:
    """The recipe's defaults for a model of this family, called so."""
    each = RECIPES[name]
    return each[BUILTIN if model == BUILTIN else _ALIKE.get(family, family)]


def by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings within settings, each by the name that `--set` gives it: {"em.rows": 10}."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = by_name(value) if isinstance(value, dict) else None
        found |= {name: value} if inner is None else {f"{name}.{last}": each for last, each in inner.items()}
    return found
