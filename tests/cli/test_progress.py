"""Progress of a step iterator: bars on a terminal, a line every few seconds elsewhere."""

import io

import pytest
import torch
from rich.console import Console

from costars.cli.progress import SECONDS_BETWEEN_LINES, ProgressLines, format_seconds, show_progress
from costars.types import Step

STEPS = [Step(stage, i, 2, torch.zeros(1), rows=i) for stage in ("layout", "personalise") for i in range(2)]


def test_results_are_passed_on_and_every_stage_has_a_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    assert list(show_progress([*STEPS, "one", *STEPS, "two"], console)) == ["one", "two"]
    output = console.file.getvalue()
    assert "layout" in output and "personalise" in output and "2/2" in output


def test_lines_and_no_bars_are_printed_where_output_is_not_a_terminal(capsys):
    console = Console(file=io.StringIO())
    assert list(show_progress([*STEPS, "picture"], console)) == ["picture"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        f"{stage} {step}/2" for stage in ("layout", "personalise") for step in (1, 2)
    ]
    assert console.file.getvalue() == ""


def run(durations, total, first=1):
    """The lines of a stage whose steps take these seconds."""
    now, lines = [0.0], []
    progress = ProgressLines(print=lines.append, clock=lambda: now[0])
    for done, seconds in enumerate(durations, first):
        now[0] += seconds
        progress.update("layout", done, total)
    return lines


def test_a_long_stage_has_a_line_every_few_seconds_with_rate_and_time_left():
    lines = run([1.0] * 30, 30)
    assert lines[0] == "layout 1/30"
    assert lines[1] == "layout 6/30, 1.0 steps/s, 24 s left"
    assert lines[-1] == "layout 30/30, 1.0 steps/s"
    assert len(lines) == 1 + 29 // SECONDS_BETWEEN_LINES + 1


def test_slow_steps_have_a_line_each_and_their_seconds():
    assert run([60.0] * 3, 90, first=30)[1:] == [
        "layout 31/90, 60.0 s/step, 59 min 0 s left",
        "layout 32/90, 60.0 s/step, 58 min 0 s left",
    ]


def test_a_stage_that_begins_again_is_a_new_one():
    lines = []
    progress = ProgressLines(print=lines.append, clock=lambda: 0.0)
    for done in (1, 2, 1, 2):
        progress.update("layout", done, 4)
    assert lines == ["layout 1/4", "layout 1/4"]


@pytest.mark.parametrize(("seconds", "text"), [(41.6, "42 s"), (185, "3 min 5 s"), (7_800, "2 h 10 min")])
def test_times_are_written_with_their_units(seconds, text):
    assert format_seconds(seconds) == text
