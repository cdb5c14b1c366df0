"""The training loop: a generator that yields every step and, at the end, the concepts."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from torch import Tensor

from costars.train.autosave import SAVE_EVERY_S, Autosave
from costars.train.cpu_attention import eager_attention
from costars.train.data.class_images import generate_class_latents
from costars.train.em.objective import em_objective
from costars.train.objective import Objective, image_objective
from costars.train.results import TrainingResult, make_result
from costars.train.run import TrainingRun, start_run
from costars.train.task import TrainingTask
from costars.train.trainable import Trainable, make_trainable
from costars.types import LearnedWords, MaskArray

TRAINING, CLASS_IMAGES = "training", "class images"  # stages


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step of a stage; total is the stage's number of steps, seconds the time of all parts of a resumed run.

    learned are the current embeddings of new words, masks {(image, concept): mask} those of the EM recipe. note is a
    message for the user, mostly empty.
    """

    stage: str
    step: int
    total: int
    loss: float = math.nan
    seconds: float = 0.0
    learned: LearnedWords = field(default_factory=dict)
    masks: Mapping[tuple[int, str], MaskArray] = field(default_factory=dict)
    note: str = ""


def train(
    task: TrainingTask,
    checkpoint: Path | None = None,
    resume: bool = False,
    save_every_s: float = SAVE_EVERY_S,
) -> Generator[Progress | TrainingResult, None, None]:
    """Train the task's subjects together; yields each step, then the result. The model is restored afterwards.

    The checkpoint is written every save_every_s seconds, at the end, and if the iterator is closed or interrupted; with
    resume the run continues from it with the same losses. If it cannot be written, training continues and a step's
    note says so. Under `accelerate launch` each process takes its own batches and gradients are averaged.
    Raises TrainError for unusable subjects, a checkpoint of another run, and a non-finite loss.
    """
    task = task.checked()
    processes = PartialState(cpu=task.model.device.type == "cpu")
    resumed = checkpoint if resume else None
    class_latents: list[Tensor] = []
    if task.recipe.prior_loss_weight and not task.class_examples:
        with _open_run(task, processes, resumed, ()):
            pass  # report errors before class images are generated, which takes long
        cache = None if checkpoint is None else checkpoint.with_suffix(".prior")
        count, seed = task.recipe.num_class_images, task.recipe.seed
        for latent in generate_class_latents(task.model, task.class_captions, count, seed, cache):
            class_latents.append(latent)
            yield Progress(stage=CLASS_IMAGES, step=len(class_latents), total=count)
    with _open_run(task, processes, resumed, class_latents) as run:
        autosave = Autosave(checkpoint if processes.is_main_process else None, save_every_s)
        yield from _take_steps(run, autosave)
        autosave.at_end(run)
        yield make_result(run)


def _take_steps(run: TrainingRun, autosave: Autosave) -> Iterator[Progress]:
    started = time.monotonic() - run.seconds
    try:
        while run.step < run.recipe.steps:
            run.take_step()
            run.seconds = time.monotonic() - started
            yield Progress(
                stage=TRAINING,
                step=run.step,
                total=run.recipe.steps,
                loss=run.losses[-1],
                seconds=run.seconds,
                learned=run.trainable.learned_words,
                masks=dict(run.objective.masks),
                note=autosave.after_step(run),
            )
    except BaseException as error:
        autosave.on_error(run, error)
        raise


@contextmanager
def _open_run(
    task: TrainingTask, processes: PartialState, checkpoint: Path | None, class_latents: Sequence[Tensor]
) -> Iterator[TrainingRun]:
    """Make the model trainable for the block; the run is at its start, or at its checkpoint if that exists."""
    model = task.model
    with (
        eager_attention(model.unet, tuple(encoder.module for encoder in model.encoders), model.device),
        make_trainable(task) as trainable,
        _open_objective(task, trainable, class_latents) as objective,
    ):
        run = start_run(task, trainable, objective, processes)
        if checkpoint is not None and checkpoint.exists():
            run.restore(checkpoint)
        yield run


def _open_objective(
    task: TrainingTask, trainable: Trainable, class_latents: Sequence[Tensor]
) -> AbstractContextManager[Objective]:
    if task.recipe.em is not None:
        return em_objective(task, trainable, task.recipe.em)
    return image_objective(task, trainable, class_latents)
