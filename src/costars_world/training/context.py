"""Files and limits of a training of the built-in models: pictures, checkpoints and sample sheets."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from costars_world.training import dataset, loop


class Status(NamedTuple):
    """Progress of a part: step of total, and a text beside the progress bar."""

    step: int
    total: int
    text: str


class UnfinishedError(Exception):
    """A part ran out of time; its checkpoint holds the state."""


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """Where a training writes and how long it may take.

    work holds pictures and checkpoints, weights and judge_weights the results. minutes limits each part.
    """

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
        """Folder of the rendered pictures."""
        return self.work / "dataset"

    def run_options(self, part: str, recipe: loop.Recipe) -> loop.RunOptions:
        """Return the options for a part's run; deletes an old checkpoint unless resuming."""
        checkpoint = self.work / f"{part}.safetensors"
        if not self.resume:
            checkpoint.unlink(missing_ok=True)
        return loop.RunOptions(
            recipe=recipe, checkpoint=checkpoint, device=self.device, minutes=self.minutes, resume=self.resume
        )

    def render_pictures(self, count: int) -> Iterator[Status]:
        """Render the missing pictures of the first count."""
        for done in dataset.render(self.pictures, count, self.workers):
            yield Status(done, count, "pictures")

    def finish_run(
        self,
        part: str,
        steps: Iterator[tuple[loop.Run, loop.Progress]],
        draw_sheet: Callable[[loop.Run], Image.Image],
    ) -> Generator[Status, None, loop.Run]:
        """Take all steps, save a sample sheet from time to time and at the end, and return the finished run.

        Raises UnfinishedError if time ran out, because later parts need finished ones.
        """
        run, last = None, time.monotonic()
        for run, progress in steps:
            yield Status(progress.step, progress.total, f"loss {progress.loss:.4f}")
            if time.monotonic() - last > self.sheet_every_s:
                self.save_sheet(part, run, draw_sheet)
                last = time.monotonic()
        assert run is not None
        self.save_sheet(part, run, draw_sheet)
        if progress.step < progress.total:
            raise UnfinishedError(f"{part}: {progress.step} of {progress.total} steps done; continue with --resume")
        return run

    def save_sheet(self, part: str, run: loop.Run, draw_sheet: Callable[[loop.Run], Image.Image]) -> None:
        """Save a sheet of samples at the run's step."""
        draw_sheet(run).save(self.work / f"{part}-{run.step:06d}.png")
