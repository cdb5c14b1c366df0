"""Training on a flat copy of all weights: few kernels a step, low precision in the nets, float32 in the steps.

The nets run in their own dtype (bfloat16 on a GPU); a float32 copy of all their weights lies in one
vector. A step gathers the gradients into one vector, takes one fused AdamW step on the copy, follows it
with one running mean, and writes the copy back into the nets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # elements; weights stay aligned to 128 bytes, which the fast matrix kernels need
RESUMED_STEPS = 1000  # of the optimizer in a run that goes on: its moments need no correction any more


@dataclass(frozen=True)
class Rates:
    """How the weights move; the learning rate follows the share of the phase's time that is over."""

    learning_rate: float
    warmup_steps: int = 200
    decay_share: float = 0.5  # the last share of the time falls linearly to zero
    betas: tuple[float, float] = (0.9, 0.99)  # as version 1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.998  # the rate falls to zero, so a mean over some 500 steps is enough

    def factor(self, step: int, progress: float) -> float:
        """Of the learning rate, at a step and a share of the time in [0, 1]."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warm * min(1.0, (1.0 - progress) / self.decay_share)


def compute_type(device: torch.device) -> torch.dtype:
    """bfloat16 where it is fast."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


class FlatTraining:
    """master, average (n,) float32: the weights and their running mean, in the order of the parameters."""

    def __init__(self, module: nn.Module, rates: Rates, dtype: torch.dtype) -> None:
        """Move the trainable parameters of a module, already on its device, into one vector of this dtype."""
        self.rates, self.step_count = rates, 0
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        device = self.parameters[0].device
        self.lengths = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in self.parameters]
        flat = torch.zeros(sum(self.lengths), device=device)
        for view, parameter in zip(self._views(flat), self.parameters, strict=True):
            view.copy_(parameter.detach())
        self.master = nn.Parameter(flat)
        self.average = flat.detach().clone()
        self.weights = flat.detach().to(dtype)
        for view, parameter in zip(self._views(self.weights), self.parameters, strict=True):
            parameter.data = view
        frozen = [p for p in module.parameters() if not p.requires_grad]
        for fixed in (*frozen, *(b for b in module.buffers() if b.is_floating_point())):
            fixed.data = fixed.data.to(dtype)
        self.padding = [flat.new_zeros(length, dtype=dtype) for length in (0, ALIGNMENT)]
        self.optimizer = torch.optim.AdamW(
            [self.master],
            lr=rates.learning_rate,
            betas=rates.betas,
            weight_decay=rates.weight_decay,
            fused=True,
        )

    def _views(self, flat: Tensor) -> Iterator[Tensor]:
        start = 0
        for parameter, length in zip(self.parameters, self.lengths, strict=True):
            yield flat[start : start + parameter.numel()].view(parameter.shape)
            start += length

    def step(self, progress: float) -> Tensor:
        """One step from the parameters' gradients, which are dropped; returns their norm. Skips non-finite ones."""
        gradient = self.gather()
        norm = gradient.norm()
        finite = torch.isfinite(norm)
        scale = torch.where(finite, (self.rates.clip_norm / (norm + 1e-6)).clamp(max=1.0), 0.0)
        self.master.grad = torch.where(finite, gradient, 0.0).mul_(scale)
        self.optimizer.param_groups[0]["lr"] = self.rates.learning_rate * self.rates.factor(self.step_count, progress)
        self.optimizer.step()
        self.step_count += 1
        decay = min(self.rates.ema_decay, (1 + self.step_count) / (10 + self.step_count))
        self.average.lerp_(self.master.detach(), 1 - decay)
        self.weights.copy_(self.master.detach())
        return norm

    def gather(self) -> Tensor:
        """(n,) float32 gradients of the parameters, which are dropped."""
        pieces = []
        for parameter, length in zip(self.parameters, self.lengths, strict=True):
            gradient = parameter.grad
            pieces.append(self.weights.new_zeros(parameter.numel()) if gradient is None else gradient.reshape(-1))
            pieces.append(self.padding[1][: length - parameter.numel()])
            parameter.grad = None
        return torch.cat(pieces).float()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the nets hold the running mean of their weights."""
        self.weights.copy_(self.average)
        try:
            yield
        finally:
            self.weights.copy_(self.master.detach())

    def put(self, module: nn.Module, *, average: bool = True) -> None:
        """Write the running mean, or the weights themselves, as float32 into a module of the same layout."""
        targets = [p for p in module.parameters() if p.requires_grad]
        flat = (self.average if average else self.master.detach()).to(targets[0].device, copy=True)
        for view, parameter in zip(self._views(flat), targets, strict=True):
            parameter.data = view

    def state(self) -> dict[str, Tensor]:
        """All that a later run needs to go on: weights, running mean and the optimizer's moments."""
        moments = self.optimizer.state[self.master]
        kept = {"master": self.master, "average": self.average}
        kept |= {name: moments[name] for name in ("exp_avg", "exp_avg_sq") if name in moments}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from a state. Raises ValueError if it is of another module."""
        if state["master"].shape != self.master.shape:
            raise ValueError(f"the state has {len(state['master'])} weights, the model {len(self.master)}")
        self.master.data.copy_(state["master"])
        self.average.copy_(state["average"])
        self.weights.copy_(self.master.detach())
        if "exp_avg" in state:
            moments = {name: state[name].to(self.master.device) for name in ("exp_avg", "exp_avg_sq")}
            step = torch.tensor(float(RESUMED_STEPS), device=self.master.device)  # where the fused kernel wants it
            self.optimizer.state[self.master] = {"step": step, **moments}
