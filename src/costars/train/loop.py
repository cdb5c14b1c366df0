"""The one training loop: a generator that yields every step and, at its end, the concepts."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor

from costars.errors import TrainError
from costars.model.model import Model
from costars.model.precision import has_bf16_units
from costars.train.cpu_attention import plain_attention
from costars.train.data.class_images import generate_class_latents
from costars.train.data.subject import TrainingSubject, check_subject, collect_class_examples
from costars.train.em.objective import em_objective
from costars.train.objective import Objective, picture_objective
from costars.train.recipes import Recipe
from costars.train.run import Run, begun
from costars.train.trainable import Trained, trained_on
from costars.types import Concept, LearnedWords, MaskArray

TEACHING, CLASS_PICTURES = "teaching", "class pictures"
SAVE_EVERY_S = 180.0


@dataclass(frozen=True)
class Progress:
    """A step that was taken: seconds count all pieces of a run, learned are the new words as they now are.

    masks {(picture, concept): mask} are those of the EM recipe. note is a line that the user must be told.
    """

    stage: str
    step: int
    of: int
    loss: float = math.nan
    seconds: float = 0.0
    learned: LearnedWords = field(default_factory=dict)
    masks: Mapping[tuple[int, str], MaskArray] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Taught:
    """The concepts that came of it, one for each teaching, and what their cards say."""

    concepts: tuple[Concept, ...]
    card: dict[str, Any]


def teach(
    model: Model,
    teachings: Sequence[TrainingSubject],
    recipe: Recipe,
    kept: Path | None = None,
    resume: bool = False,
    save_every_s: float = SAVE_EVERY_S,
) -> Generator[Progress | Taught, None, None]:
    """Teach concepts together; the last thing yielded is what was taught. The model is as it was afterwards.

    kept is the checkpoint: written every so many seconds, and when the iterator is closed or fails, but not
    where the teaching itself went wrong; with resume the run goes on from it to the same losses. Where it cannot
    be written the run goes on, the one before stays, and the note of one step says so. Under `accelerate launch`
    each process takes batches of its own and the gradients are averaged. Raises TrainError for pictures that do
    not fit, a checkpoint of another run, and a loss that is no number.
    """
    for teaching in teachings:
        check_subject(teaching, recipe)
    given = collect_class_examples(teachings, recipe)
    recipe = replace(recipe, precision=precision_of(recipe, model))
    if recipe.precision == "fp32" and model.dtype in (torch.bfloat16, torch.float16):
        kind = str(model.dtype).removeprefix("torch.")
        raise TrainError(f"precision=fp32: the model is in {kind}; open it with --dtype float32, or set precision=bf16")
    processes, latents = PartialState(cpu=model.device.type == "cpu"), list[Tensor]()
    captions = tuple(dict.fromkeys(caption for t in teachings for caption in t.class_captions()))
    if recipe.prior_loss_weight and not given:
        with _begun(model, teachings, recipe, processes, kept if resume else None, ()):
            pass  # what cannot be taught is told before an hour goes into pictures
        beside = None if kept is None else kept.with_suffix(".prior")
        for latent in generate_class_latents(model, captions, recipe.num_class_images, recipe.seed, beside):
            latents.append(latent)
            yield Progress(CLASS_PICTURES, len(latents), recipe.num_class_images)
    with _begun(model, teachings, recipe, processes, kept if resume else None, latents) as run:
        began = time.monotonic() - run.seconds
        keep = kept if processes.is_main_process else None
        saves = _Saves(keep, save_every_s)
        try:
            while run.step < recipe.steps:
                run.take_step()
                run.seconds = time.monotonic() - began
                note = saves.after(run)
                told = (run.losses[-1], run.seconds, run.trained.learned, dict(run.objective.masks), note)
                yield Progress(TEACHING, run.step, recipe.steps, *told)
        except BaseException as end:
            # What went wrong may have been in the making for some steps: an older checkpoint, or none, is better.
            if keep is not None and run.step and run.whole and not isinstance(end, TrainError):
                _save_at(end, run, keep)
            raise
        with suppress(OSError):  # a full disk must not take the concept away at the end
            if keep is not None:
                run.save(keep)
        card = _card(run, recipe, model, teachings)
        yield Taught(tuple(_concept(t, run.trained, recipe, model) for t in teachings), card)


def precision_of(recipe: Recipe, model: Model) -> Literal["bf16", "fp32"]:
    """The precision of a run: the recipe's, or with auto bf16 where the device has units for it or the model is half.

    A model in half precision cannot be trained in fp32.
    """
    if recipe.precision != "auto":
        return recipe.precision
    half = model.dtype in (torch.bfloat16, torch.float16)
    return "bf16" if half or has_bf16_units(model.device) else "fp32"


@dataclass
class _Saves:
    """The checkpoint of a run, written every so many seconds; a disk that is full ends nothing and is told once."""

    kept: Path | None
    every_s: float
    last: float = field(default_factory=time.monotonic)
    told: bool = False

    def after(self, run: Run) -> str:
        """Save after a step where it is time; a line for the user where that failed for the first time."""
        if self.kept is None or time.monotonic() - self.last <= self.every_s:
            return ""
        why = _unsaved(run, self.kept)
        self.last = time.monotonic()
        if not why or self.told:
            return ""
        self.told = True
        stays = "the checkpoint before it stays" if run.kept else "there is no checkpoint of it yet"
        again = f"each {self.every_s:.0f} s it is tried again"
        return f"{why}; the teaching goes on, {stays}, and {again}: make room, or let it be written there"


def _save_at(end: BaseException, run: Run, kept: Path) -> None:
    """Save where a run ends early; a disk that is full must not hide why it ends."""
    if why := _unsaved(run, kept):
        end.add_note(why)


def _unsaved(run: Run, kept: Path) -> str:
    """Save a run; why that failed, or nothing."""
    try:
        run.save(kept)
    except OSError as error:
        return f"{kept}: cannot be written ({error.strerror or error})"
    return ""


@contextmanager
def _begun(
    model: Model,
    teachings: Sequence[TrainingSubject],
    recipe: Recipe,
    processes: PartialState,
    kept: Path | None,
    class_latents: Sequence[Tensor],
) -> Iterator[Run]:
    """Within the block the model can be trained: a run at its beginning, or where its checkpoint is."""
    with (
        plain_attention(model.unet, tuple(e.module for e in model.encoders), model.device),
        trained_on(model, teachings, recipe) as trained,
        _objective(model, teachings, recipe, trained, class_latents) as objective,
    ):
        run = begun(model, teachings, recipe, trained, objective, processes)
        if kept is not None and kept.exists():
            run.restore(kept)
        yield run


def _objective(
    model: Model, teachings: Sequence[TrainingSubject], recipe: Recipe, trained: Trained, class_latents: Sequence[Tensor]
) -> AbstractContextManager[Objective]:
    if recipe.em is not None:
        return em_objective(model, teachings, recipe, trained, recipe.em)
    return picture_objective(model, teachings, recipe, trained, class_latents)


def _concept(teaching: TrainingSubject, trained: Trained, recipe: Recipe, model: Model) -> Concept:
    words = teaching.trigger_words[: recipe.num_new_tokens]
    return Concept(
        teaching.name,
        teaching.class_name,
        teaching.trigger,
        model.facts.family,
        trained.adapter(),
        teaching.name,
        "",
        format="costars",
        tokens=trained.tokens(words, recipe.per_layer_embeddings),
        per_layer=recipe.per_layer_embeddings,
        weights=trained.whole(),
    )


def _card(run: Run, recipe: Recipe, model: Model, teachings: Sequence[TrainingSubject]) -> dict[str, Any]:
    last = run.losses[-20:]
    return {
        "base_model": model.facts.name,
        "base_sha256": model.facts.sha256,
        "family": model.facts.family,
        "pictures": sum(len(t.examples) for t in teachings),
        "class_images": sum(len(t.class_examples) for t in teachings),
        "recipe": asdict(recipe),
        "seconds": round(run.seconds, 1),
        "loss": round(sum(last) / len(last), 5),
        "device": model.device.type,
        "per_layer": recipe.per_layer_embeddings,
    }
