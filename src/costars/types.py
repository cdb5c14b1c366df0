"""The values that flow through costars: frozen, plain, in the order in which they come to be.

Shapes: p paths, g the guidance pair (uncond, cond), c h w a latent, t tokens, s steps, k concepts.
Boxes are (left, top, right, bottom) fractions in [0, 1]; masks are float32 (h, w) in [0, 1] on the
image grid, and are brought to the latent grid in sample/mask_blending.py alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import Module

from costars.errors import CostarsError
from costars.scene.scene import Scene

MaskArray = NDArray[np.float32]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class LowRank:
    """One layer's change of weight: up @ down, the scale already in it.

    down is (r, in) or (r, in, kh, kw); up is (out, r) or (out, r, 1, 1).
    """

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class WeightRule:
    """One layer's change of weight and bias that is computed from them when it is applied.

    kind is a key of model/weight_rules.RULES; tensors are the formula's inputs by role, in the dtype of their file.
    """

    kind: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class FullChange:
    """One layer's change of weight and bias that has no low rank: the sum of its parts, each times its scale."""

    parts: tuple[tuple[WeightRule | LowRank, float], ...]


Change = LowRank | FullChange
Adapter = Mapping[str, Change]  # module path, led by "unet.", "text_encoder." or "text_encoder_2."
# {word: {"text_encoder": (l, n, d), ...}}: n vectors in the word's place, for each of l cross-attention layers or 1.
LearnedWords = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Concept:
    """A learned character or object: its trigger, adapter, learned words, and the file they are from.

    format is the kind of file. tokens {word: {"text_encoder": (n, d), "text_encoder_2": (n, d)}} are the vectors of
    learned words; with per_layer there is one vector for each of n cross-attention layers (ED-LoRA).
    weights {module path: (out, in) or (out, in, kh, kw)} replace the model's own (Custom Diffusion, DreamBooth).
    notes are lines for the user about what the file says and how it was read.
    """

    name: str
    class_name: str
    trigger: str
    family: str
    adapter: Adapter
    source: str
    sha256: str
    licence: str = ""
    format: str = ""
    tokens: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    per_layer: bool = False
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> LearnedWords:
        """The learned words in the shape that text encoders read."""
        axis = 1 if self.per_layer else 0
        return {w: {part: v.unsqueeze(axis) for part, v in parts.items()} for w, parts in self.tokens.items()}


@dataclass(frozen=True)
class Text:
    """An encoded prompt: tokens (l, t, d), pooled (1, d), spans {word: token positions of each occurrence}.

    l is 1, or the number of cross-attention layers if each reads tokens of its own (ED-LoRA). pooled is None for
    families without a pooled embedding.
    """

    prompt: str
    tokens: Tensor
    pooled: Tensor | None
    spans: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class DenoisingPath:
    """One path of the denoising: a pair of rows (uncond, cond), or one replayed row.

    adapter names an adapter of the `one_adapter_per_row` block around the loop; None is the base model.
    replay are the stored latents (s + 1, c, h, w) that the path uses instead of the common one.
    controlled says whether the scene's ControlNets act on the path.
    """

    name: str
    text: Text
    negative: Text | None = None
    adapter: str | None = None
    replay: Tensor | None = None
    controlled: bool = False

    @property
    def rows(self) -> int:
        """UNet rows per step: 2 with guidance, 1 without a negative text."""
        return 1 if self.negative is None else 2


@dataclass(frozen=True)
class Step:
    """A finished step of a loop: latent is (1, c, h, w), rows counts the UNet rows so far.

    rows_per_call is the largest number of rows of a UNet call.
    """

    stage: str
    index: int
    of: int
    latent: Tensor
    rows: int
    rows_per_call: int = 0


@dataclass(frozen=True)
class SchedulerState:
    """A diffusers scheduler as stage 1 left it before a step; one with memory can continue from there."""

    scheduler: Any
    step: int
    device: torch.device


@dataclass(frozen=True)
class Layout:
    """Stage 1: the scene without identities, with the latents of every step.

    latents are (s + 1, c, h, w), the noise first, at least float32; maps {word: (h, w) mean cross-attention}; prompt is
    the one it was drawn from. notes are lines for the user. These are not in files: attention {(step, layer): (heads,
    tokens, d)}, the cross-attention outputs that were cached, and state, that of a scheduler with memory before the
    first step of stage 2.
    """

    image: Image.Image
    latents: Tensor
    maps: Mapping[str, NDArray[np.float32]]
    prompt: str
    rows: int
    attention: Mapping[tuple[int, str], Tensor] = field(default_factory=dict, repr=False)
    state: SchedulerState | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Region:
    """A figure that a segmenter found; depth 0 is the front-most, box is of the mask."""

    class_name: str
    mask: MaskArray
    score: float
    depth: int

    @property
    def area(self) -> float:
        """Share of the picture."""
        return float(self.mask.mean())

    @property
    def box(self) -> Box:
        """Smallest box around the mask at level 0.5; all zero for an empty mask."""
        rows, columns = (np.flatnonzero((self.mask >= 0.5).any(axis=a)) for a in (1, 0))
        if not len(rows):
            return (0.0, 0.0, 0.0, 0.0)
        h, w = self.mask.shape
        left, top, right, bottom = columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h
        return float(left), float(top), float(right), float(bottom)


@dataclass(frozen=True)
class Plan:
    """A layout and the region of each member: {member: region}, disjoint, in prompt order.

    edited says that its masks were changed after planning; notes are lines for the user; extra_figures are the classes
    of figures in the layout that are not in the cast; hashes {field of the scene: sha256} are of the files that the
    layout was drawn with.
    """

    scene: Scene
    layout: Layout
    regions: Mapping[str, Region]
    seconds: Mapping[str, float] = field(default_factory=dict)
    edited: bool = False
    notes: tuple[str, ...] = ()
    extra_figures: tuple[str, ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """The result, with everything it was made from; plan is None for a method that needs none.

    hashes {field of the scene: sha256} are of its files (cast.ana.concept) and of the plan's masks. max_rows is the
    largest number of rows of a UNet call. lost are members that are not visible where the plan has them, if the
    segmenter can tell; seen_as {member: class} says what is seen there instead. layer_counts
    {member: "12 of 12 layers"} says how much of a concept the model has.
    """

    image: Image.Image
    scene: Scene
    plan: Plan | None
    hashes: Mapping[str, str]
    rows: Mapping[str, int]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    memory: str = "full"
    max_rows: int = 0
    lost: tuple[str, ...] = ()
    layer_counts: Mapping[str, str] = field(default_factory=dict)
    seen_as: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet with its pose, edge or depth picture (1, 3, h px, w px) in [0, 1].

    net is a diffusers ControlNetModel (Zhang et al. 2023, arXiv 2302.05543). It acts with this scale in the steps
    from share start to share end. sha256 is of its weights, image_sha256 of the picture's file.
    """

    net: Module
    image: Tensor
    scale: float
    start: float
    end: float
    sha256: str = ""
    image_sha256: str = ""


class RegionError(CostarsError):
    """The layout does not show every member of the cast; carries the layout and the regions that were found."""

    def __init__(self, message: str, layout: Layout | None = None, regions: tuple[Region, ...] = ()) -> None:
        super().__init__(message)
        self.layout = layout
        self.regions = regions


@dataclass(frozen=True)
class Machine:
    """Where the shipped weights are, and what to run on."""

    weights: Path
    device: torch.device
    dtype: torch.dtype
    offline: bool


class Segmenter(Protocol):
    """Finds figures in a layout."""

    def __call__(self, layout: Layout, class_names: Sequence[str]) -> list[Region]:
        """Every region of these classes; several of one class are several regions."""
        ...


class Attend(Protocol):
    """softmax(q k^T / sqrt(d) + bias) v; q, k, v are (rows, heads, tokens, d), bias (rows, 1, q tokens, k tokens)."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """(rows, heads, q tokens, d)."""
        ...


@dataclass(frozen=True)
class AttentionContext:
    """One attention layer in one UNet call: cross or self, share of the steps done, rows of the batch, step."""

    layer: str
    cross: bool
    progress: float
    rows: slice
    step: int = 0


class AttentionRule(Protocol):
    """What the attention of one step may see."""

    def __call__(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor, context: AttentionContext) -> Tensor:
        """The layer's attention output; query, key, value are (rows, heads, tokens, d)."""
        ...
