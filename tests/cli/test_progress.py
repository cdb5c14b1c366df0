"""Progress bars of a step iterator."""

import io

import torch
from rich.console import Console

from costars.cli.progress import show_progress
from costars.types import Step

STEPS = [Step(stage, i, 2, torch.zeros(1), rows=i) for stage in ("layout", "personalise") for i in range(2)]


def test_last_event_is_returned_and_every_stage_has_a_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    assert show_progress([*STEPS, "picture"], console) == "picture"
    output = console.file.getvalue()
    assert "layout" in output and "personalise" in output and "2/2" in output


def test_no_bar_is_drawn_where_output_is_not_a_terminal():
    console = Console(file=io.StringIO())
    assert show_progress([*STEPS, "picture"], console) == "picture"
    assert console.file.getvalue().strip() == ""
