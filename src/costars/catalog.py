"""The table of contents: what a scene may name, and what does it. To add one, add a line."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from costars.methods import multi_lora, two_stage
from costars.microworld.segmenter import load_segmenter
from costars.model.model import Model
from costars.segment.attention import AttentionSegmenter
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

# Each is given the folder of the shipped weights and the device.
SEGMENTERS: Mapping[str, Callable[[Path, torch.device], Segmenter]] = {
    "world": lambda shipped, device: load_segmenter(shipped / "segmenter" / "model.safetensors", device),
    "attention": lambda shipped, device: AttentionSegmenter(),
}
