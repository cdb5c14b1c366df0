"""A training run: its steps, and how it is kept and gone on with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn

from costars.errors import TrainError
from costars.model.model import Model
from costars.train import checkpoint
from costars.train.data.subject import TrainingSubject, hash_subjects
from costars.train.objective import Objective
from costars.train.optimizers import optimizer_of, rate_at
from costars.train.recipes import Recipe, flatten_settings
from costars.train.trainable import Trained

_OBJECTIVE = "objective/"
_ANEW = "begin anew with --replace in place of --resume"
# What may be another when a run is gone on with.
FREE = ("steps", "unet_lr", "text_encoder_lr", "embedding_lr", "max_grad_norm", "lr_decay_fraction", "precision")


@dataclass
class Run:
    """Parameters, optimizer and objective, and how far they are; losses are of every step so far."""

    model: Model
    recipe: Recipe
    trained: Trained
    objective: Objective
    processes: PartialState
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    pictures: str = ""  # the sha256 of what is taught
    whole: bool = True  # no step is half taken
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    kept: bool = False  # there is a checkpoint of its own

    def take_step(self) -> None:
        """One step of the optimizer; raises TrainError, and changes nothing, where loss or gradients are no numbers."""
        with self._autocast():
            self.objective.before(self.step)
        for group, rate in zip(self.optimizer.param_groups, self._rates(), strict=True):
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss = sum(self._part(part) for part in range(self.recipe.gradient_accumulation_steps))
        live = self._averaged()
        norm = nn.utils.clip_grad_norm_(live, self.recipe.max_grad_norm or math.inf, foreach=True)
        if not math.isfinite(loss) or not bool(norm.isfinite()):
            again = "go on from the checkpoint" if self.kept else "begin anew"
            raise TrainError(
                f"step {self.step + 1}: the loss is {loss:.3g} and its slope {float(norm):.3g}, so it stops here; "
                f"{again} with lower rates, or with precision=fp32"
            )
        self.whole = False
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss)
        self.whole = True
        self._stop_words()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _part(self, part: int) -> float:
        """The loss of one batch of a step, its gradients added up."""
        turn = (self.step * self.recipe.gradient_accumulation_steps + part) * self.processes.num_processes
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + turn + self.processes.process_index)
        with self._autocast():
            error = self.objective.loss(generator) / self.recipe.gradient_accumulation_steps
        error.backward()  # type: ignore[no-untyped-call]
        return float(error.detach())

    def _averaged(self) -> list[nn.Parameter]:
        """What moves in this step, its gradients the mean over the processes; other gradients are dropped."""
        several, groups = self.processes.num_processes > 1, self.optimizer.param_groups
        live = [p for group in groups if group["lr"] for p in group["params"] if p.requires_grad]
        live = [p for p in live if several or p.grad is not None]
        for parameter in {*self.parameters.values()} - {*live}:
            parameter.grad = None
        for parameter in live if several else ():
            # A word that this process did not read may be in another's batch: all must reduce the same ones.
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= self.processes.num_processes
        return live

    def _rates(self) -> list[float]:
        """The groups' rates; what is not words waits until they have learned alone."""
        share, waits = rate_at(self.step, self.recipe), self.step < self.recipe.embedding_only_steps
        return [g["initial_lr"] * share * float(g["words"] or not waits) for g in self.optimizer.param_groups]

    def _stop_words(self) -> None:
        if self.recipe.embedding_norm_threshold and self.trained.words_norm() >= self.recipe.embedding_norm_threshold:
            self.trained.freeze_words()

    def save(self, kept: Path) -> None:
        """Write all that the run needs to go on."""
        facts = {"step": str(self.step), "seconds": str(self.seconds), "losses": json.dumps(self.losses)}
        facts |= {"recipe": json.dumps(asdict(self.recipe)), "base_sha256": self.model.facts.sha256}
        facts["pictures_sha256"] = self.pictures
        own = {f"{_OBJECTIVE}{key}": tensor for key, tensor in self.objective.state().items()}
        checkpoint.save(kept, checkpoint.state_of(self.parameters, self.optimizer) | own, facts)
        self.kept = True

    def restore(self, kept: Path) -> None:
        """Be where a checkpoint is; raises TrainError for one of another run."""
        tensors, facts = checkpoint.load(kept)
        texts = (facts.get("recipe", "{}"), json.dumps(asdict(self.recipe)))
        before, now = (flatten_settings(json.loads(text)) for text in texts)
        for name, value in now.items():
            if before.get(name) != value and name not in FREE:
                raise TrainError(f"{kept.name}: was begun with {name}={before.get(name)}, now it is {value}; {_ANEW}")
        if facts.get("base_sha256") != self.model.facts.sha256:
            raise TrainError(f"{kept.name}: was begun on another model; {_ANEW}")
        if facts.get("pictures_sha256") != self.pictures:
            raise TrainError(
                f"{kept.name}: the pictures, captions or concepts are others than when it was begun; {_ANEW}"
            )
        checkpoint.put_state(tensors, self.parameters, self.optimizer)
        self.objective.restore(_own(tensors))
        self.step, self.seconds, self.losses = int(facts["step"]), float(facts["seconds"]), json.loads(facts["losses"])
        self.kept = True
        self._stop_words()


def of_objective(kept: Path) -> tuple[int, dict[str, Tensor]]:
    """How many steps a checkpoint has, and what its objective keeps."""
    tensors, facts = checkpoint.load(kept)
    return int(facts["step"]), _own(tensors)


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(_OBJECTIVE): t for key, t in tensors.items() if key.startswith(_OBJECTIVE)}


def begun(
    model: Model,
    teachings: Sequence[TrainingSubject],
    recipe: Recipe,
    trained: Trained,
    objective: Objective,
    processes: PartialState,
) -> Run:
    """A run at its beginning."""
    optimizer = optimizer_of(trained.groups(recipe), recipe)
    return Run(model, recipe, trained, objective, processes, trained.parameters(), optimizer, hash_subjects(teachings))
