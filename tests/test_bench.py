"""The benchmarks of true sizes run from end to end on their tiny size; what they find is not judged here."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


def run(monkeypatch, script, *arguments):
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(BENCH / script), run_name="__main__")


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_the_tiny_size_runs_and_counts_its_rows(monkeypatch, tmp_path, capsys):
    out = tmp_path / "tiny.json"
    run(monkeypatch, "sdxl.py", "--tiny", "--size", "64", "--k", "1", "2", "--rounds", "1", "--out", str(out))
    told = json.loads(out.read_text())
    assert told["tiny"] and told["size_px"] == 64
    assert [row["rows"] for row in told["table"]] == [100 + 34 * 5, 100 + 34 * 7]
    parts = {"layout", "personalise", "decode", "diffusers", "official"}
    assert all(row["seconds"].keys() == parts for row in told["table"])
    assert all(value > 0 for row in told["table"] for value in row["seconds"].values())
    assert capsys.readouterr().out.count("x as fast as the official schedule") == 2


def test_both_loops_of_training_take_their_steps(monkeypatch, tmp_path, capsys):
    out = tmp_path / "training.json"
    run(monkeypatch, "training.py", "--tiny", "--size", "64", "--steps", "3", "--out", str(out))
    told = json.loads(out.read_text())
    assert told["tiny"] and told["peak_gib"] == {"diffusers": None, "costars": None}
    assert all(value > 0 for value in told["seconds"].values())
    assert told["over_diffusers"] == told["seconds"]["costars"] / told["seconds"]["diffusers"]
    assert "x as long" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["sdxl.py", "training.py"])
def test_true_size_is_not_tried_where_there_is_no_device_for_it(script, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, script)
    assert caught.value.code == 2 and "use --tiny" in capsys.readouterr().err
