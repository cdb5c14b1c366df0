"""Runs a function in several processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from multiprocessing import get_context
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def run_parallel(function: Callable[[T], R], tasks: Sequence[T], workers: int) -> Generator[R, None, None]:
    """Yield the results as they complete, in any order.

    One worker runs in this process; several run in spawned processes with one thread each.
    """
    if workers == 1 or len(tasks) < 2:
        yield from map(function, tasks)
        return
    with get_context("spawn").Pool(min(workers, len(tasks)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.imap_unordered(function, tasks)
