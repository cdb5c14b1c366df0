"""A training run: its optimizer steps and its checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from pydantic import BaseModel, Field
from torch import Tensor, nn

from costars.errors import ReadError, TrainError
from costars.files.plain_data import parse_json
from costars.train.checkpoint import collect_state, load_checkpoint, load_state, save_checkpoint
from costars.train.data.subject import hash_subjects
from costars.train.objective import Objective
from costars.train.optimizers import lr_factor, make_optimizer
from costars.train.recipe import Recipe, flatten_settings
from costars.train.task import TrainingTask
from costars.train.trainable import Trainable

_OBJECTIVE = "objective/"
_START_AGAIN = "start again with --replace instead of --resume"
# Settings that may change when a run is resumed.
RESUMABLE_SETTINGS = (
    "steps",
    "unet_lr",
    "text_encoder_lr",
    "embedding_lr",
    "max_grad_norm",
    "lr_decay_fraction",
    "precision",
)


class RunProgress(BaseModel):
    """How far a run was at its checkpoint: one loss for each step."""

    step: int = Field(ge=0)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    losses: tuple[float, ...]


def read_progress(path: Path, facts: Mapping[str, str]) -> RunProgress:
    """The progress in a checkpoint's metadata. Raises TrainError if it is missing or damaged."""
    try:
        losses, recipe = (parse_json(facts[key], path) for key in ("losses", "recipe"))
        progress = RunProgress(step=facts["step"], seconds=facts["seconds"], losses=losses)  # type: ignore[arg-type]
        if len(progress.losses) != progress.step or not isinstance(recipe, dict):
            raise ValueError
    except (ReadError, ValueError, KeyError):
        raise TrainError(
            f"{path}: not a readable checkpoint (its step, losses or recipe are damaged); delete it and start again"
        ) from None
    return progress


@dataclass(kw_only=True)
class TrainingRun:
    """Parameters, optimizer and objective of a task and their progress; losses has one value per step."""

    task: TrainingTask
    trainable: Trainable
    objective: Objective
    processes: PartialState
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    subjects_sha256: str
    is_consistent: bool = True  # False while an optimizer step is under way
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    has_checkpoint: bool = False

    @property
    def recipe(self) -> Recipe:
        """The task's recipe."""
        return self.task.recipe

    def take_step(self) -> None:
        """Take one optimizer step. Raises TrainError, with unchanged parameters, for non-finite loss or gradients."""
        with self._autocast():
            self.objective.prepare_step(self.step)
        for group, lr in zip(self.optimizer.param_groups, self._learning_rates(), strict=True):
            group["lr"] = lr
        self.optimizer.zero_grad()
        loss = sum(self._accumulate(part) for part in range(self.recipe.gradient_accumulation_steps))
        parameters = self._reduce_gradients()
        norm = nn.utils.clip_grad_norm_(parameters, self.recipe.max_grad_norm or math.inf, foreach=True)
        if not math.isfinite(loss) or not bool(norm.isfinite()):
            raise TrainError(self._describe_divergence(loss, float(norm)))
        self.is_consistent = False
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss)
        self.is_consistent = True
        self._freeze_embeddings_at_threshold()

    def _describe_divergence(self, loss: float, norm: float) -> str:
        what = f"loss ({loss:.3g})" if not math.isfinite(loss) else f"gradient norm ({norm:.3g})"
        kept = "the last checkpoint is kept; resume it" if self.has_checkpoint else "start again"
        step = self.step + 1
        return f"non-finite {what} at step {step}; training stopped, {kept} with lower learning rates or precision=fp32"

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.task.model.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _accumulate(self, part: int) -> float:
        """Add the gradients of one batch of the step; returns its share of the loss."""
        index = (self.step * self.recipe.gradient_accumulation_steps + part) * self.processes.num_processes
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + index + self.processes.process_index)
        with self._autocast():
            loss = self.objective.loss(generator) / self.recipe.gradient_accumulation_steps
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _reduce_gradients(self) -> list[nn.Parameter]:
        """Average gradients over the processes and drop those of parameters that this step does not change.

        Returns the parameters that it changes.
        """
        is_distributed, groups = self.processes.num_processes > 1, self.optimizer.param_groups
        active = [p for group in groups if group["lr"] for p in group["params"] if p.requires_grad]
        active = [p for p in active if is_distributed or p.grad is not None]
        for parameter in {*self.parameters.values()} - {*active}:
            parameter.grad = None
        for parameter in active if is_distributed else ():
            # A word that is not in this process's batch may be in another's: all processes reduce the same parameters.
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= self.processes.num_processes
        return active

    def _learning_rates(self) -> list[float]:
        """Current learning rates of the groups; 0 for all but embeddings in the first embedding_only_steps."""
        factor, embeddings_only = lr_factor(self.step, self.recipe), self.step < self.recipe.embedding_only_steps
        return [
            group["initial_lr"] * factor * float(group["is_embedding"] or not embeddings_only)
            for group in self.optimizer.param_groups
        ]

    def _freeze_embeddings_at_threshold(self) -> None:
        threshold = self.recipe.embedding_norm_threshold
        if threshold and self.trainable.embedding_norm() >= threshold:
            self.trainable.freeze_embeddings()

    def save(self, path: Path) -> None:
        """Write a checkpoint. Raises TrainError for parameters that are not finite: the last good one is kept."""
        self.check_finite()
        facts = {"step": str(self.step), "seconds": str(self.seconds), "losses": json.dumps(self.losses)}
        facts |= {"recipe": json.dumps(asdict(self.recipe)), "base_sha256": self.task.model.info.sha256}
        facts["pictures_sha256"] = self.subjects_sha256
        objective = {f"{_OBJECTIVE}{key}": tensor for key, tensor in self.objective.state().items()}
        save_checkpoint(path, collect_state(self.parameters, self.optimizer) | objective, facts)
        self.has_checkpoint = True

    def check_finite(self) -> None:
        """Raises TrainError for a parameter that is not finite."""
        for name, parameter in self.parameters.items():
            if not bool(parameter.detach().isfinite().all()):
                kept = "the last checkpoint is kept; resume it" if self.has_checkpoint else "start again"
                raise TrainError(
                    f"non-finite weights ({name}) after step {self.step}; {kept} with lower learning rates"
                )

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint. Raises TrainError if it belongs to another run."""
        tensors, facts = load_checkpoint(path)
        progress = read_progress(path, facts)
        self._check_same_run(path, facts)
        if progress.step > self.recipe.steps:
            raise TrainError(
                f"{path.name}: has taken {progress.step} steps, but steps is {self.recipe.steps}; "
                f"want at least {progress.step}, or {_START_AGAIN}"
            )
        load_state(tensors, self.parameters, self.optimizer)
        try:
            self.objective.restore(_objective_state(tensors))
        except (ValueError, KeyError, IndexError, RuntimeError) as error:
            raise TrainError(f"{path.name}: its masks are damaged ({error}); {_START_AGAIN}") from None
        self.step, self.seconds, self.losses = progress.step, progress.seconds, list(progress.losses)
        self.has_checkpoint = True
        self._freeze_embeddings_at_threshold()

    def _check_same_run(self, path: Path, facts: Mapping[str, str]) -> None:
        # The current recipe is compared as JSON too: tuples become lists.
        texts = (facts.get("recipe", "{}"), json.dumps(asdict(self.recipe)))
        saved, current = (flatten_settings(parse_json(text, path)) for text in texts)
        for name, value in current.items():
            if saved.get(name) != value and name not in RESUMABLE_SETTINGS:
                raise TrainError(
                    f"{path.name}: started with {name}={saved.get(name)}, now {name}={value}; {_START_AGAIN}"
                )
        if facts.get("base_sha256") != self.task.model.info.sha256:
            raise TrainError(f"{path.name}: started on another model; {_START_AGAIN}")
        if facts.get("pictures_sha256") != self.subjects_sha256:
            raise TrainError(f"{path.name}: images, captions or concepts have changed since the start; {_START_AGAIN}")


def start_run(task: TrainingTask, trainable: Trainable, objective: Objective, processes: PartialState) -> TrainingRun:
    """A run at step 0."""
    return TrainingRun(
        task=task,
        trainable=trainable,
        objective=objective,
        processes=processes,
        parameters=trainable.named_parameters(),
        optimizer=make_optimizer(trainable.parameter_groups(task.recipe), task.recipe),
        subjects_sha256=hash_subjects(task.subjects),
    )


def read_objective_state(path: Path) -> tuple[int, dict[str, Tensor]]:
    """The number of steps of a checkpoint, and the state of its objective."""
    tensors, facts = load_checkpoint(path)
    return read_progress(path, facts).step, _objective_state(tensors)


def _objective_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(_OBJECTIVE): t for key, t in tensors.items() if key.startswith(_OBJECTIVE)}
