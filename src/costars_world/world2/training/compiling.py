"""Compiling the repeated blocks of the UNet, and falling back where that fails or does not pay."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

BLOCKS = (BasicTransformerBlock, ResnetBlock2D)  # most of the kernels, few distinct graphs
TOLERANCE = 0.05  # relative difference of gradient norms, compiled against not: bfloat16 alone gives about 0.01
AGAIN_S = 1.5  # between reminders that the time is over
RUNS = 4  # timed, after two to warm up


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread when the time is over, and again while the block goes on.

    Compilers catch what is raised while they try something, so once is not enough.
    """

    def stop(signum: int, frame: Any) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds), AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compile_blocks(module: nn.Module) -> None:
    """Compile the forward call of each repeated block, in place."""
    torch._dynamo.config.cache_size_limit = 64  # one graph per width and shape
    for part in module.modules():
        if isinstance(part, BLOCKS):
            part.compile()


def drop_compiled(module: nn.Module) -> None:
    """Undo compile_blocks."""
    for part in module.modules():
        if isinstance(part, BLOCKS):
            part._compiled_call_impl = None
    torch._dynamo.reset()


def choose_compiled(
    module: nn.Module,
    step: Callable[[int], Tensor],
    shapes: Sequence[int],
    seconds: float,
    log: Callable[[str], None],
) -> bool:
    """Compile a module's blocks if that works, agrees and is faster within the time; returns whether it stays so.

    step(shape) runs one forward and backward pass on fixed data and returns the norm of the gradient.
    """
    eager = [_timed(step, shape) for shape in shapes]
    log("eager " + ", ".join(f"{1e3 * t:.0f} ms" for t, _ in eager))
    began = time.monotonic()
    try:
        with time_limit(seconds):
            compile_blocks(module)
            compiled = [_timed(step, shape) for shape in shapes]
    except Exception as error:
        drop_compiled(module)
        log(f"compiling failed after {time.monotonic() - began:.0f} s: {type(error).__name__} {str(error)[:300]}")
        return False
    log(f"compiled in {time.monotonic() - began:.0f} s: " + ", ".join(f"{1e3 * t:.0f} ms" for t, _ in compiled))
    alike = all(abs(a - b) <= TOLERANCE * b for (_, a), (_, b) in zip(compiled, eager, strict=True))
    faster = sum(t for t, _ in compiled) < 0.95 * sum(t for t, _ in eager)
    if not (alike and faster):
        log(f"not compiled: norms {[n for _, n in compiled]} against {[n for _, n in eager]}, faster {faster}")
        drop_compiled(module)
    return alike and faster


def _timed(step: Callable[[int], Tensor], shape: int) -> tuple[float, float]:
    """Least seconds of a step and its gradient norm; the least, because other processes share the GPU."""
    for _ in range(2):
        norm = float(step(shape))
    best = float("inf")
    for _ in range(RUNS):
        began = time.monotonic()
        norm = float(step(shape))
        best = min(best, time.monotonic() - began)
    return best, norm
