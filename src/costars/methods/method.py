"""What a method is: the generators that draw a picture."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import Tensor

from costars.resolved_scene import ResolvedScene
from costars.types import Layout, Plan, Step


@dataclass(frozen=True, kw_only=True)
class Method:
    """Either draw_layout and personalise (a plan comes between them), or sample (the picture at once).

    Each is a generator: it yields a Step after every step and returns the layout, or the final latent (1, c, h, w).
    """

    draw_layout: Callable[[ResolvedScene], Generator[Step, None, Layout]] | None = None
    personalise: Callable[[ResolvedScene, Plan], Generator[Step, None, Tensor]] | None = None
    sample: Callable[[ResolvedScene], Generator[Step, None, Tensor]] | None = None
