"""Periodic checkpoints of a training run. A full disk does not end the run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from costars.errors import TrainError
from costars.train.run import TrainingRun

SAVE_EVERY_S = 180.0


@dataclass
class Autosave:
    """Writes the checkpoint of a run every `every_s` seconds, or nothing if path is None."""

    path: Path | None
    every_s: float = SAVE_EVERY_S
    _last: float = field(default_factory=time.monotonic)
    _warned: bool = False

    def after_step(self, run: TrainingRun) -> str:
        """Save if it is time; returns a warning the first time that it fails, else an empty string."""
        if self.path is None or time.monotonic() - self._last <= self.every_s:
            return ""
        problem = _try_save(run, self.path)
        self._last = time.monotonic()
        if not problem or self._warned:
            return ""
        self._warned = True
        kept = "the previous checkpoint is kept" if run.has_checkpoint else "there is no checkpoint of this run yet"
        return f"{problem}; training continues, {kept}; next try in {self.every_s:.0f} s, free some disk space"

    def on_error(self, run: TrainingRun, error: BaseException) -> None:
        """Save a run that ends early; a failure to do so is added to the error as a note.

        A run that failed by itself is not saved: it may have gone wrong some steps ago, so an older checkpoint or none
        is better.
        """
        if self.path is None or not run.step or not run.is_consistent or isinstance(error, TrainError):
            return
        try:
            problem = _try_save(run, self.path)
        except TrainError as damage:
            problem = str(damage)
        if problem:
            error.add_note(problem)

    def at_end(self, run: TrainingRun) -> None:
        """Save a finished run; a file that cannot be written is ignored, as the concepts are still to be written."""
        if self.path is not None:
            _try_save(run, self.path)


def _try_save(run: TrainingRun, path: Path) -> str:
    """Save; returns why it failed, or an empty string."""
    try:
        run.save(path)
    except OSError as error:
        return f"{path}: cannot be written ({error.strerror or error})"
    return ""
