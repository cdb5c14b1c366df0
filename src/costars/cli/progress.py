"""A progress bar for each stage of a step iterator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from costars.types import Step


def show_progress(events: Iterable[Any], console: Console) -> Any:
    """Show the steps of an iterator as bars, one per stage; returns its last event, which is the result."""
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    event = None
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}
        for event in events:
            if isinstance(event, Step):
                if event.stage not in tasks:
                    tasks[event.stage] = progress.add_task(event.stage, total=event.of)
                progress.update(tasks[event.stage], completed=event.index + 1)
    return event
