"""One resumable training loop for every part of the built-in world."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from costars.model.precision import has_bf16_units
from costars.train.checkpoint import load, put_state, state_of
from costars.train.checkpoint import save as write

_AVERAGE = "average/"


@dataclass(frozen=True)
class Recipe:
    """How one part is trained; the values that ship were found by trial on the built-in world."""

    steps: int
    batch: int
    learning_rate: float
    warmup_steps: int = 100
    decay_share: float = 0.25  # the last share of the steps falls linearly to zero
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """Where a training run is; the loss is an exponential mean, seconds count every piece."""

    step: int
    of: int
    loss: float
    seconds: float


@dataclass
class Run:
    """What a run carries from one piece to the next."""

    parameters: dict[str, nn.Parameter]
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan


LossOf = Callable[[torch.Generator], Tensor]


def start(module: nn.Module, recipe: Recipe, checkpoint: Path, resume: bool) -> Run:
    """A fresh run over a module's parameters, or the one saved at the checkpoint."""
    parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    run = Run(parameters, {k: p.detach().clone() for k, p in parameters.items()}, optimizer)
    if resume and checkpoint.exists():
        _restore(run, checkpoint)
    return run


def train(
    run: Run,
    recipe: Recipe,
    loss_of: LossOf,
    *,
    device: torch.device,
    checkpoint: Path,
    minutes: float = math.inf,
    save_every_s: float = 180,
) -> Iterator[Progress]:
    """Take steps until the recipe is done or this piece's minutes are over; yields after each, at least once.

    loss_of draws its own batch from the generator it is given, which is seeded by the step, so a
    resumed run sees the batches that an unbroken one would have seen.
    """
    began = saved = time.monotonic()
    before = run.seconds
    parameters = list(run.parameters.values())
    average = list(run.average.values())
    if run.step >= recipe.steps:
        yield Progress(run.step, recipe.steps, run.loss, run.seconds)
    while run.step < recipe.steps:
        for group in run.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _rate(run.step, recipe)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + run.step)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16_units(device)):
            loss = loss_of(generator)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm, foreach=True)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.step += 1
        decay = min(recipe.ema_decay, (1 + run.step) / (10 + run.step))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        if device.type == "cpu" or run.step % 20 == 0:
            value = float(loss.detach())
            run.loss = value if math.isnan(run.loss) else 0.98 * run.loss + 0.02 * value
        now = time.monotonic()
        run.seconds = before + now - began
        over = now - began > minutes * 60
        if over or now - saved > save_every_s or run.step == recipe.steps:
            save(run, checkpoint)
            saved = now
        yield Progress(run.step, recipe.steps, run.loss, run.seconds)
        if over:
            return


def _rate(step: int, recipe: Recipe) -> float:
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    left = (recipe.steps - step) / max(1.0, recipe.steps * recipe.decay_share)
    return min(warm, left, 1.0)


def save(run: Run, checkpoint: Path) -> None:
    """Write the parameters, their running mean and the optimizer's moments as safetensors."""
    facts = {"step": str(run.step), "seconds": str(run.seconds), "loss": str(run.loss)}
    averages = {_AVERAGE + name: tensor for name, tensor in run.average.items()}
    write(checkpoint, state_of(run.parameters, run.optimizer) | averages, facts)


def _restore(run: Run, checkpoint: Path) -> None:
    tensors, facts = load(checkpoint)
    for name in run.average:
        run.average[name].copy_(tensors.pop(_AVERAGE + name))
    put_state(tensors, run.parameters, run.optimizer)
    run.step, run.seconds = int(facts["step"]), float(facts["seconds"])
    run.loss = float(facts["loss"])


def put_average(run: Run, module: nn.Module, prefix: str = "") -> None:
    """Put the running mean of the weights into a module: the one in training, its part, or a copy."""
    for name, parameter in module.named_parameters():
        if prefix + name in run.average:
            parameter.data.copy_(run.average[prefix + name])
