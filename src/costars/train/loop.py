"""The one training loop: a generator that yields every step and, at its end, the concepts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from costars.errors import TrainError
from costars.model.model import Model
from costars.train import checkpoint
from costars.train.attention import plain_attention
from costars.train.em import em_objective
from costars.train.lessons import Teaching, check
from costars.train.objective import Objective, picture_objective
from costars.train.optimizers import optimizer_of, rate_at
from costars.train.prior import class_latents
from costars.train.recipes import Recipe
from costars.train.trained import Trained, trained_on
from costars.types import Concept, LearnedWords, MaskArray

TEACHING, CLASS_PICTURES = "teaching", "class pictures"
SAVE_EVERY_S = 180.0
_OBJECTIVE = "objective/"


@dataclass(frozen=True)
class Progress:
    """A step that was taken: seconds count all pieces of a run, learned are the new words as they now are.

    masks {(picture, concept): mask} are those of the EM recipe.
    """

    stage: str
    step: int
    of: int
    loss: float = math.nan
    seconds: float = 0.0
    learned: LearnedWords = field(default_factory=dict)
    masks: Mapping[tuple[int, str], MaskArray] = field(default_factory=dict)


@dataclass(frozen=True)
class Taught:
    """The concepts that came of it, one for each teaching, and what their cards say."""

    concepts: tuple[Concept, ...]
    card: dict[str, Any]


@dataclass
class _Run:
    trained: Trained
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def teach(
    model: Model,
    teachings: Sequence[Teaching],
    recipe: Recipe,
    kept: Path | None = None,
    resume: bool = False,
    save_every_s: float = SAVE_EVERY_S,
) -> Generator[Progress | Taught, None, None]:
    """Teach concepts together; the last thing yielded is what was taught. The model is as it was afterwards.

    kept is the checkpoint: written every so many seconds, when the iterator is closed and when it fails;
    with resume the run goes on from it to the same losses. Under `accelerate launch` each process takes
    batches of its own and the gradients are averaged. Raises TrainError for pictures that do not fit, a
    checkpoint of another run, and a loss that is no number.
    """
    for teaching in teachings:
        check(teaching, described=recipe.em is None)
    processes, latents = PartialState(cpu=model.device.type == "cpu"), list[Tensor]()
    captions = tuple(dict.fromkeys(caption for t in teachings for caption in t.without()))
    if recipe.prior_weight:
        beside = None if kept is None else kept.with_suffix(".prior")
        for latent in class_latents(model, captions, recipe.prior_pictures, recipe.seed, beside):
            latents.append(latent)
            yield Progress(CLASS_PICTURES, len(latents), recipe.prior_pictures)
    with ExitStack() as stack:
        stack.enter_context(plain_attention(model.unet, tuple(e.module for e in model.encoders), model.device))
        trained = stack.enter_context(trained_on(model, teachings, recipe))
        objective = stack.enter_context(_objective(model, teachings, recipe, trained, latents))
        run = _Run(trained, trained.parameters(), optimizer_of(trained.groups(recipe), recipe))
        if resume and kept is not None and kept.exists():
            objective.restore(_restore(run, recipe, model, kept))
        began, saved = time.monotonic() - run.seconds, time.monotonic()
        try:
            while run.step < recipe.steps:
                objective.before(run.step)
                run.losses.append(_step(run, objective, recipe, processes))
                run.step += 1
                run.seconds = time.monotonic() - began
                if kept is not None and time.monotonic() - saved > save_every_s:
                    _save(run, objective, recipe, model, kept, processes)
                    saved = time.monotonic()
                told = (run.losses[-1], run.seconds, trained.learned, dict(objective.masks))
                yield Progress(TEACHING, run.step, recipe.steps, *told)
        finally:
            if kept is not None and run.step:
                _save(run, objective, recipe, model, kept, processes)
        card = _card(run, recipe, model, sum(len(t.examples) for t in teachings))
        yield Taught(tuple(_concept(t, trained, recipe, model) for t in teachings), card)


def _objective(
    model: Model, teachings: Sequence[Teaching], recipe: Recipe, trained: Trained, class_latents: Sequence[Tensor]
) -> AbstractContextManager[Objective]:
    if recipe.em is not None:
        return em_objective(model, teachings, recipe, trained, recipe.em)
    return picture_objective(model, teachings, recipe, trained, class_latents)


def _step(run: _Run, objective: Objective, recipe: Recipe, processes: PartialState) -> float:
    """One step of the optimizer; raises TrainError, and changes nothing, where loss or gradients are no numbers."""
    for group, rate in zip(run.optimizer.param_groups, _rates(run, recipe), strict=True):
        group["lr"] = rate
    run.optimizer.zero_grad()
    loss = 0.0
    for part in range(recipe.accumulate):
        turn = (run.step * recipe.accumulate + part) * processes.num_processes + processes.process_index
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + turn)
        with torch.autocast(run.trained.device.type, torch.bfloat16):
            error = objective.loss(generator) / recipe.accumulate
        error.backward()  # type: ignore[no-untyped-call]
        loss += float(error.detach())
    live = [p for g in run.optimizer.param_groups if g["lr"] for p in g["params"] if p.grad is not None]
    for parameter in {*run.parameters.values()} - {*live}:
        parameter.grad = None
    for parameter in live if processes.num_processes > 1 else ():
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= processes.num_processes  # type: ignore[operator]
    norm = nn.utils.clip_grad_norm_(live, recipe.clip_norm or math.inf, foreach=True)
    if not math.isfinite(loss) or not bool(norm.isfinite()):
        raise TrainError(
            f"step {run.step + 1}: the loss is {loss:.3g} and its slope {float(norm):.3g}, so it stops here; what was "
            "learned until then is kept in the checkpoint; use lower rates, or --dtype float32"
        )
    run.optimizer.step()
    if recipe.norm_stop and run.trained.words_norm() >= recipe.norm_stop:
        run.trained.freeze_words()
    return loss


def _rates(run: _Run, recipe: Recipe) -> list[float]:
    """The groups' rates; what is not words waits until they have learned alone."""
    groups, share = run.optimizer.param_groups, rate_at(run.step, recipe)
    return [g["initial_lr"] * share * float(g["words"] or run.step >= recipe.words_first) for g in groups]


def _save(run: _Run, objective: Objective, recipe: Recipe, model: Model, kept: Path, processes: PartialState) -> None:
    if processes.is_main_process:
        facts = {"step": str(run.step), "seconds": str(run.seconds), "losses": json.dumps(run.losses)}
        facts |= {"recipe": json.dumps(asdict(recipe)), "base_sha256": model.facts.sha256}
        own = {f"{_OBJECTIVE}{key}": tensor for key, tensor in objective.state().items()}
        checkpoint.save(kept, checkpoint.state_of(run.parameters, run.optimizer) | own, facts)


def _restore(run: _Run, recipe: Recipe, model: Model, kept: Path) -> dict[str, Tensor]:
    """Puts the run where it was; what is left is the objective's own."""
    tensors, facts = checkpoint.load(kept)
    before = json.loads(facts.get("recipe", "{}"))
    for name, value in json.loads(json.dumps(asdict(recipe))).items():
        if before.get(name) != value:
            raise TrainError(
                f"{kept.name}: was begun with {name}={before.get(name)}, now it is {value}; begin anew without --resume"
            )
    if facts.get("base_sha256") != model.facts.sha256:
        raise TrainError(f"{kept.name}: was begun on another model; begin anew without --resume")
    checkpoint.put_state(tensors, run.parameters, run.optimizer)
    run.step, run.seconds, run.losses = int(facts["step"]), float(facts["seconds"]), json.loads(facts["losses"])
    if recipe.norm_stop and run.trained.words_norm() >= recipe.norm_stop:
        run.trained.freeze_words()
    return {key.removeprefix(_OBJECTIVE): t for key, t in tensors.items() if key.startswith(_OBJECTIVE)}


def _concept(teaching: Teaching, trained: Trained, recipe: Recipe, model: Model) -> Concept:
    words = teaching.words[: recipe.words]
    return Concept(
        teaching.name,
        teaching.class_name,
        teaching.trigger,
        model.facts.family,
        trained.adapter(),
        teaching.name,
        "",
        format="costars",
        tokens=trained.tokens(words, recipe.per_layer),
        per_layer=recipe.per_layer,
        weights=trained.whole(),
    )


def _card(run: _Run, recipe: Recipe, model: Model, pictures: int) -> dict[str, Any]:
    last = run.losses[-20:]
    return {
        "base_model": model.facts.name,
        "base_sha256": model.facts.sha256,
        "family": model.facts.family,
        "pictures": pictures,
        "recipe": asdict(recipe),
        "seconds": round(run.seconds, 1),
        "loss": round(sum(last) / len(last), 5),
        "device": model.device.type,
        "per_layer": recipe.per_layer,
    }
