"""What all processes of a run share, and how they report to each other through small files."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costars_world.world2.training.cast import Casting
from costars_world.world2.training.clock import Clock
from costars_world.world2.training.files import write_json
from costars_world.world2.training.plan import Plan
from costars_world.world2.training.store import Store
from costars_world.world2.training.world import World


@dataclass(frozen=True)
class Options:
    """What the command line sets; sizes are small in tests alone."""

    out: Path
    work: Path
    device: str = "cuda"
    init: Path | None = None
    keep: Path | None = None
    batch: int = 256
    learning_rate: float | None = None
    compile: bool = True
    smoke: bool = False
    tiny: bool = False
    line_up: int = 101
    least_pictures: int = 1500  # before the first training step; rendered in a few seconds
    first_pictures: int = 12_000  # before the base starts; more are there unless an autoencoder was given
    threads: int = 2  # of each training process on the CPU; the renderers take the other cores


@dataclass(frozen=True)
class Context:
    """The run: clock, plan, pictures and options, the same in all its processes."""

    clock: Clock
    plan: Plan
    store: Store
    world: World
    casting: Casting
    options: Options

    def log(self, name: str, line: str) -> None:
        """Print a line with the time since the run began."""
        print(f"[{self.clock.elapsed():6.1f} s] {name}: {line}", flush=True)

    def report(self, name: str, **facts: Any) -> None:
        """Add facts to the report of one process and print them."""
        path = self.options.work / f"{name}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        write_json(path, known | facts)
        self.log(name, ", ".join(f"{k} {_short(v)}" for k, v in facts.items()))

    def wait_for(self, path: Path, share: float) -> bool:
        """Wait for a file of another process until a share of the time is over; returns whether it is there."""
        while not path.exists() and self.clock.until(share) > 0:
            time.sleep(0.2)
        return path.exists()


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_short(v) for v in value[:12]) + (", ...]" if len(value) > 12 else "]")
    return str(value)


def free_cores(taken: int) -> int:
    """CPU cores that are left for rendering, at least one."""
    return max(1, (os.cpu_count() or 1) - taken)
