"""The concepts that a training run results in, and their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from costars.concepts.saving import write_concept
from costars.errors import TrainError
from costars.train.data.subject import TrainingSubject
from costars.train.run import TrainingRun
from costars.train.task import TrainingTask
from costars.types import Concept, LowRank

_LOSS_STEPS = 20  # at the end of the run, over which a card's loss is averaged


@dataclass(frozen=True)
class TrainingResult:
    """The trained concepts, in the order of the subjects, and the facts for their cards."""

    concepts: tuple[Concept, ...]
    card: dict[str, Any]


def make_result(run: TrainingRun) -> TrainingResult:
    """The result of a run in its current state. Raises TrainError for a tensor that is not finite."""
    concepts = tuple(_make_concept(run, subject) for subject in run.task.subjects)
    for concept in concepts:
        check_finite(concept)
    return TrainingResult(concepts, _make_card(run))


def check_finite(concept: Concept) -> None:
    """Raises TrainError that names the first tensor of a concept that is not finite."""
    trained = {path: entry for path, entry in concept.adapter.items() if isinstance(entry, LowRank)}
    tensors = {path: torch.cat([e.down.flatten(), e.up.flatten()]) for path, e in trained.items()}
    tensors |= {f"{word}.{part}": t for word, parts in concept.tokens.items() for part, t in parts.items()}
    for name, tensor in {**tensors, **concept.weights}.items():
        if not bool(tensor.isfinite().all()):
            raise TrainError(
                f"{concept.name}: non-finite weights in {name}, so it is not written; train again with lower learning "
                "rates or precision=fp32"
            )


def _make_concept(run: TrainingRun, subject: TrainingSubject) -> Concept:
    per_layer = run.recipe.per_layer_embeddings
    return Concept(
        subject.name,
        subject.class_name,
        subject.trigger,
        run.task.model.info.family,
        run.trainable.adapter(),
        subject.name,
        "",
        format="costars",
        tokens=run.trainable.concept_tokens(run.task.new_words(subject), per_layer),
        per_layer=per_layer,
        weights=run.trainable.full_weights(),
    )


def _make_card(run: TrainingRun) -> dict[str, Any]:
    task, losses = run.task, run.losses[-_LOSS_STEPS:]
    return {
        "base_model": _model_name(task),
        "base_sha256": task.model.info.sha256,
        "family": task.model.info.family,
        "pictures": len(task.examples),
        "class_images": sum(len(subject.class_examples) for subject in task.subjects),
        "recipe": asdict(task.recipe),
        "seconds": round(run.seconds, 1),
        "loss": round(sum(losses) / len(losses), 5),
        "device": task.model.device.type,
        "per_layer": task.recipe.per_layer_embeddings,
    }


def _model_name(task: TrainingTask) -> str:
    """The model's name without the folders of this machine: concept files are shared."""
    name = task.model.info.name
    return Path(name).name if Path(name).is_absolute() else name


def write_concepts(result: TrainingResult, targets: Sequence[Path], *, replace: bool = True) -> None:
    """Write each concept to its .safetensors file with a card; each file is written atomically.

    Without `replace` an existing target raises FileExistsError. Raises TrainError before anything is written if a
    tensor is not finite.
    """
    for concept in result.concepts:
        check_finite(concept)
    for concept, target in zip(result.concepts, targets, strict=True):
        facts = {"name": concept.name, "class_name": concept.class_name, "trigger": concept.trigger}
        write_concept(concept, facts | result.card, target, replace=replace)
