"""A sheet of what a concept in training has come to: its pictures, and the model's under the same captions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from PIL import Image

from costars.model.model import Model
from costars.model.text import NOTHING_LEARNED
from costars.sheets import grid
from costars.train.lessons import Teaching
from costars.train.prior import draw
from costars.types import LearnedWords

COLUMNS = 4


def preview(
    model: Model, teachings: Sequence[Teaching], learned: LearnedWords = NOTHING_LEARNED, seed: int = 0
) -> Image.Image:
    """Two rows for each concept, drawn by the model as it now is; between two steps of `teach`."""
    rows = []
    for teaching in teachings:
        shown = teaching.examples[:COLUMNS]
        drawn = [draw(model, _literal(e.caption or ""), seed + i, learned) for i, e in enumerate(shown)]
        rows += [[e.image for e in shown], [model.decode(latent) for latent in drawn]]
    return grid(rows, captions=[f"{t.name}: {what}" for t in teachings for what in ("as given", "as drawn")])


def _literal(caption: str) -> str:
    return re.sub(r"([\\()\[\]])", r"\\\1", caption)
