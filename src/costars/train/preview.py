"""A sheet of what a concept in training has come to: its pictures, and the model's under the same captions."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from costars.images.contact_sheet import make_grid
from costars.model.model import Model
from costars.model.prompt_weighting import unemphasised
from costars.model.text_encoder import NOTHING_LEARNED
from costars.train.data.class_images import sample_latent
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject
from costars.types import LearnedWords

COLUMNS = 4


def preview(
    model: Model, teachings: Sequence[TrainingSubject], learned: LearnedWords = NOTHING_LEARNED, seed: int = 0
) -> Image.Image:
    """Two rows for each concept, drawn by the model as it now is; between two steps of `teach`."""
    rows = []
    for teaching in teachings:
        shown = teaching.examples[:COLUMNS]
        captions = [_said(example, teaching) for example in shown]
        drawn = [sample_latent(model, unemphasised(caption), seed + i, learned) for i, caption in enumerate(captions)]
        rows += [[e.image for e in shown], [model.decode(latent) for latent in drawn]]
    return make_grid(rows, captions=[f"{t.name}: {what}" for t in teachings for what in ("as given", "as drawn")])


def _said(example: Example, teaching: TrainingSubject) -> str:
    """The example's caption, unless it says who is in the picture: then the concept alone."""
    caption = example.caption or ""
    return caption if caption and "{" not in caption else f"a {teaching.trigger} {teaching.class_name}"
