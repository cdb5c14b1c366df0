"""The table of contents: what a scene may name, and what does it. To add one, add a line."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from costars.builtin.segmenter import load_segmenter
from costars.methods import multi_lora
from costars.methods.omg import stages as two_stage
from costars.model.model import Model
from costars.segment.cross_attention import AttentionSegmenter
from costars.segment.grounded_sam import ClipSeg, GroundedSam, OwlSam
from costars.types import Job, Layout, Plan, Segmenter, Step


@dataclass(frozen=True)
class Method:
    """How a picture is made: with a plan drawn first (layout, personalise), or at once (sample)."""

    draw_layout: Callable[[Model, Job, Any], Generator[Step, None, Layout]] | None
    personalise: Callable[[Model, Plan, Job, Any], Generator[Step, None, Tensor]] | None = None
    sample: Callable[[Model, Job, Any], Generator[Step, None, Tensor]] | None = None


METHODS: Mapping[str, Method] = {
    "two_stage": Method(two_stage.draw_layout, two_stage.personalise),
    "multi_lora": Method(None, sample=multi_lora.sample),
}


@dataclass(frozen=True)
class Machine:
    """Where the shipped weights are, and what to run on."""

    shipped: Path
    device: torch.device
    dtype: torch.dtype
    offline: bool


# Each is given the machine, and the options that a scene sets.
SEGMENTERS: Mapping[str, Callable[..., Segmenter]] = {
    "world": lambda on: load_segmenter(on.shipped / "segmenter" / "model.safetensors", on.device),
    "attention": lambda on: AttentionSegmenter(),
    "grounded_sam": lambda on, **options: GroundedSam(on.device, on.dtype, on.offline, **options),
    "owl_sam": lambda on, **options: OwlSam(on.device, on.dtype, on.offline, **options),
    "clipseg": lambda on, **options: ClipSeg(on.device, on.dtype, on.offline, **options),
}
