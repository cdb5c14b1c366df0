"""A resumable training loop for the built-in models."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from costars.model.precision import has_bf16_units
from costars.train.checkpoint import collect_state, load_checkpoint, load_state, save_checkpoint

_AVERAGE = "average/"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of one part; the shipped values were tuned on the built-in world."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    decay_share: float = 0.25  # share of the steps, at the end, in which the rate falls linearly to zero
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to train with, where the checkpoint is, and how long to train now."""

    recipe: Recipe
    checkpoint: Path
    device: torch.device
    minutes: float = math.inf
    resume: bool = False
    save_every_s: float = 180


@dataclass(frozen=True)
class Progress:
    """State after a step; loss is an exponential moving average, seconds include earlier sessions."""

    step: int
    total: int
    loss: float
    seconds: float


@dataclass
class Run:
    """Everything that a resumed run needs."""

    parameters: dict[str, nn.Parameter]
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan


LossFunction = Callable[[torch.Generator], Tensor]


def start(module: nn.Module, options: RunOptions) -> Run:
    """Start a run over a module's trainable parameters, or resume the one in the checkpoint."""
    recipe = options.recipe
    parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    run = Run(parameters, {k: p.detach().clone() for k, p in parameters.items()}, optimizer)
    if options.resume and options.checkpoint.exists():
        _restore(run, options.checkpoint)
    return run


def train(run: Run, options: RunOptions, compute_loss: LossFunction) -> Iterator[Progress]:
    """Train until the recipe is done or the minutes are over; yields after every step, and at least once.

    compute_loss samples its batch with the given generator. The generator is seeded by the step, so a resumed run
    sees the same batches as an uninterrupted one.
    """
    recipe = options.recipe
    started = saved = time.monotonic()
    seconds_before = run.seconds
    if run.step >= recipe.steps:
        yield Progress(run.step, recipe.steps, run.loss, run.seconds)
    while run.step < recipe.steps:
        _take_step(run, options, compute_loss)
        now = time.monotonic()
        run.seconds = seconds_before + now - started
        out_of_time = now - started > options.minutes * 60
        if out_of_time or now - saved > options.save_every_s or run.step == recipe.steps:
            save(run, options.checkpoint)
            saved = now
        yield Progress(run.step, recipe.steps, run.loss, run.seconds)
        if out_of_time:
            return


def _take_step(run: Run, options: RunOptions, compute_loss: LossFunction) -> None:
    """Take one optimizer step, then update the moving averages of the weights and of the loss."""
    recipe, device = options.recipe, options.device
    parameters = list(run.parameters.values())
    for group in run.optimizer.param_groups:
        group["lr"] = recipe.learning_rate * schedule_factor(run.step, recipe)
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + run.step)
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16_units(device)):
        loss = compute_loss(generator)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm, foreach=True)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step += 1
    decay = min(recipe.ema_decay, (1 + run.step) / (10 + run.step))
    torch._foreach_lerp_(list(run.average.values()), [p.detach() for p in parameters], 1 - decay)
    if device.type == "cpu" or run.step % 20 == 0:  # reading the loss synchronises the device
        value = float(loss.detach())
        run.loss = value if math.isnan(run.loss) else 0.98 * run.loss + 0.02 * value


def schedule_factor(step: int, recipe: Recipe) -> float:
    """Return the factor on the learning rate: linear warm-up, constant, linear decay to zero."""
    warmup = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    decay = (recipe.steps - step) / max(1.0, recipe.steps * recipe.decay_share)
    return min(warmup, decay, 1.0)


def save(run: Run, checkpoint: Path) -> None:
    """Write the parameters, their moving average and the optimizer's state as safetensors."""
    metadata = {"step": str(run.step), "seconds": str(run.seconds), "loss": str(run.loss)}
    average = {_AVERAGE + name: tensor for name, tensor in run.average.items()}
    save_checkpoint(checkpoint, collect_state(run.parameters, run.optimizer) | average, metadata)


def _restore(run: Run, checkpoint: Path) -> None:
    tensors, metadata = load_checkpoint(checkpoint)
    for name in run.average:
        run.average[name].copy_(tensors.pop(_AVERAGE + name))
    load_state(tensors, run.parameters, run.optimizer)
    run.step, run.seconds = int(metadata["step"]), float(metadata["seconds"])
    run.loss = float(metadata["loss"])


def copy_average(run: Run, module: nn.Module, prefix: str = "") -> None:
    """Copy the moving average of the weights into a module: the trained one, a part of it, or a copy."""
    for name, parameter in module.named_parameters():
        if prefix + name in run.average:
            parameter.data.copy_(run.average[prefix + name])
