"""Progress of a step iterator: a bar for each stage on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from costars.cli.console import print_line

if TYPE_CHECKING:
    from costars.types import Step

SECONDS_BETWEEN_LINES = 5.0
T = TypeVar("T")


@dataclass
class ProgressLines:
    """Prints a line at the first and last step of a stage, and every few seconds between them."""

    print: Callable[[str], None] = print_line
    clock: Callable[[], float] = time.monotonic
    stage: str = ""
    first: tuple[int, float] = (0, 0.0)  # steps done and time at the first step of the stage
    done: int = 0
    printed: float = field(default=0.0)

    def update(self, stage: str, done: int, total: int, text: str = "") -> None:
        """Take note of a step; done counts from 1, also where a stage begins with a later step."""
        now = self.clock()
        if stage != self.stage or done <= self.done:
            self.stage, self.first = stage, (done, now)
            is_due = True
        else:
            is_due = done == total or now - self.printed >= SECONDS_BETWEEN_LINES
        self.done = done
        if is_due:
            self.printed = now
            self.print(
                ", ".join(part for part in (f"{stage} {done}/{total}", self._pace(done, total, now), text) if part)
            )

    def _pace(self, done: int, total: int, now: float) -> str:
        steps, seconds = done - self.first[0], now - self.first[1]
        if not steps or seconds <= 0:
            return ""
        rate = steps / seconds
        pace = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
        return pace if done == total else f"{pace}, {format_seconds((total - done) / rate)} left"


def format_seconds(seconds: float) -> str:
    """A time such as 42 s, 3 min 5 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def show_progress(events: Iterable[Step | T], console: Console) -> Iterator[T]:
    """Yield the events that are not steps; show the steps as bars on a terminal, as lines elsewhere."""
    from costars.types import Step

    if not console.is_terminal:
        lines = ProgressLines()
        for event in events:
            if isinstance(event, Step):
                lines.update(event.stage, event.index + 1, event.of)
            else:
                yield event
        return
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}
        for event in events:
            if not isinstance(event, Step):
                yield event
                continue
            if event.stage not in tasks:
                tasks[event.stage] = progress.add_task(event.stage, total=event.of)
            elif event.index + 1 <= progress.tasks[tasks[event.stage]].completed:  # another seed
                progress.reset(tasks[event.stage], total=event.of)
            progress.update(tasks[event.stage], completed=event.index + 1)
