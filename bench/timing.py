"""Seconds, memory and the two ceilings of a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from costars.types import Step

T = TypeVar("T")


@dataclass(frozen=True)
class StageRun(Generic[T]):
    """One run of a stage: its result, seconds per step, seconds of everything else, and peak GiB (None on a CPU)."""

    result: T
    step_seconds: float
    other_seconds: float
    timed_steps: int
    peak_gib: float | None


def wait(device: torch.device) -> None:
    """Return when the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def now(device: torch.device) -> float:
    """Seconds of a clock, read when the device is idle."""
    wait(device)
    return time.perf_counter()


def run_stage(steps: Generator[Step, None, T], device: torch.device) -> StageRun[T]:
    """Run a stage to its end; the clock is read after its first and its last step only.

    Raises ValueError for a stage of fewer than two steps.
    """
    peak: list[float | None] = []
    first = final = began = now(device)
    count = 0
    with peak_memory(device, peak):
        while True:
            try:
                step = next(steps)
            except StopIteration as done:
                result: T = done.value
                break
            count += 1
            if count == 1:
                first = now(device)
            if step.index + 1 == step.of:
                final = now(device)
    if count < 2:
        raise ValueError(f"a stage of {count} steps: the first one is a warm-up; use more --steps")
    step_seconds = (final - first) / (count - 1)
    other_seconds = max(0.0, now(device) - began - count * step_seconds)
    return StageRun(result, step_seconds, other_seconds, count - 1, peak[0])


def time_call(run: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median seconds of a call, after one warm-up call."""
    run()
    seconds = []
    for _ in range(rounds):
        began = now(device)
        run()
        seconds.append(now(device) - began)
    return statistics.median(seconds)


@contextmanager
def peak_memory(device: torch.device, peaks: list[float | None]) -> Iterator[None]:
    """Append the peak memory of the block in GiB to peaks; None on a CPU."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    yield
    peaks.append(torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None)


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """TB/s of a large copy (bytes read and written), and TFLOP/s of a large matrix product in half precision."""
    on_gpu = device.type == "cuda"
    numbers, side, repeats = (2**30, 8192, 20) if on_gpu else (2**24, 512, 3)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    source, target = torch.randn(numbers, device=device).to(dtype), torch.empty(numbers, device=device, dtype=dtype)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def time_repeated(run: Callable[[], object]) -> float:
        return time_call(lambda: [run() for _ in range(repeats)], 3, device) / repeats

    moved = 2 * numbers * source.element_size()
    copy, product = time_repeated(lambda: target.copy_(source)), time_repeated(lambda: left @ right)
    return {"copy_tb_s": moved / copy / 1e12, "matmul_tflop_s": 2 * side**3 / product / 1e12}
