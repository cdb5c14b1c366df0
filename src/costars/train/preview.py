"""Preview sheets: the training images of each concept, and images that the model generates for their captions."""

from __future__ import annotations

from PIL import Image

from costars.images.contact_sheet import make_grid
from costars.model.text_encoder import NO_LEARNED_WORDS
from costars.train.data.class_images import sample_latent
from costars.train.data.images import Example
from costars.train.data.subject import TrainingSubject
from costars.train.task import TrainingTask
from costars.types import LearnedWords

COLUMNS = 4


def make_preview(task: TrainingTask, learned: LearnedWords = NO_LEARNED_WORDS, seed: int = 0) -> Image.Image:
    """Two rows per concept, training and generated images, from the current model between two steps of `train`."""
    rows, model = [], task.model
    for subject in task.subjects:
        examples = subject.examples[:COLUMNS]
        captions = [_caption(example, subject) for example in examples]
        latents = [sample_latent(model, caption, seed + i, learned) for i, caption in enumerate(captions)]
        rows += [[example.image for example in examples], [model.decode(latent) for latent in latents]]
    return make_grid(rows, captions=[f"{s.name}: {kind}" for s in task.subjects for kind in ("training", "generated")])


def _caption(example: Example, subject: TrainingSubject) -> str:
    """The example's caption; a caption that names several concepts is replaced by one of the subject alone."""
    caption = example.caption or ""
    return caption if caption and "{" not in caption else f"a {subject.trigger_text} {subject.class_name}"
