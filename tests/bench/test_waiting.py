"""bench/waiting.py measures each policy in turn, with and without busy processes."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "waiting.py"
# Stands in for a renderer: its seconds are 2 with a wait policy and 1 without.
CHILD = """
import os, sys
print("ready", flush=True)
for _ in sys.stdin:
    print(2 if "OMP_WAIT_POLICY" in os.environ else 1, flush=True)
"""


@pytest.fixture
def waiting(monkeypatch):
    spec = importlib.util.spec_from_file_location("waiting", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CHILD", CHILD)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    return module


def test_ratios_are_relative_to_the_default_policy(waiting, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["waiting.py", "--rounds", "3", "--busy", "1"])
    waiting.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["idle"] * 3 + ["busy"] * 3
    assert [line.rpartition("ratio")[2].strip() for line in lines] == ["1.00", "2.00", "2.00"] * 2


def test_children_do_not_inherit_a_policy(waiting, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with waiting.start_renderer({}, 8) as process:
        assert waiting.measure_render(process) == 1


def test_failing_child_is_reported(waiting, monkeypatch):
    monkeypatch.setattr(waiting, "CHILD", "raise SystemExit")
    with pytest.raises(RuntimeError, match="did not load the model"), waiting.start_renderer({}, 8):
        pass
