"""Where the built-in world is trained: its pictures, checkpoints and sample sheets on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from PIL import Image

from costars_world.training import dataset as corpus
from costars_world.training import loop

Said = tuple[int, int, str]  # step, of, what to say beside the bar


class Terms(TypedDict):
    """On what, for how long, and whether from the checkpoint."""

    device: torch.device
    minutes: float
    resume: bool


class UnfinishedError(Exception):
    """A part that stopped on time; what is done lies in its checkpoint."""


@dataclass(frozen=True)
class Workshop:
    """work holds pictures and checkpoints, weights and judge_weights the results; minutes bounds each part."""

    work: Path
    weights: Path
    judge_weights: Path
    device: torch.device
    minutes: float
    resume: bool
    sheet_every_s: float = 300.0
    workers: int = 1

    @property
    def pictures(self) -> Path:
        """The rendered pictures."""
        return self.work / "corpus"

    def terms(self) -> Terms:
        """What every part's training is told."""
        return {"device": self.device, "minutes": self.minutes, "resume": self.resume}

    def checkpoint(self, part: str) -> Path:
        """The checkpoint of one part; an old one is removed unless the run resumes it."""
        path = self.work / f"{part}.safetensors"
        if not self.resume:
            path.unlink(missing_ok=True)
        return path

    def rendered(self, count: int) -> Iterator[Said]:
        """Render what is missing of so many pictures."""
        for done in corpus.render(self.pictures, count, self.workers):
            yield done, count, "pictures"

    def trained(
        self,
        part: str,
        recipe: loop.Recipe,
        steps: Iterator[tuple[loop.Run, loop.Progress]],
        drawn: Callable[[loop.Run], Image.Image],
    ) -> Generator[Said, None, loop.Run]:
        """Take the steps, draw a sheet now and then and at the end; returns the finished run.

        Raises UnfinishedError where the minutes were over first: later parts build on finished ones only.
        """
        run, last = None, time.monotonic()
        for run, p in steps:
            yield p.step, p.of, f"loss {p.loss:.4f}"
            if time.monotonic() - last > self.sheet_every_s:
                self.show(part, run, drawn)
                last = time.monotonic()
        assert run is not None
        self.show(part, run, drawn)
        if run.step < recipe.steps:
            raise UnfinishedError(f"{part}: {run.step} of {recipe.steps} steps; go on with --resume")
        return run

    def show(self, part: str, run: loop.Run, drawn: Callable[[loop.Run], Image.Image]) -> None:
        """Write a sheet of what the part can do by now."""
        drawn(run).save(self.work / f"{part}-{run.step:06d}.png")
