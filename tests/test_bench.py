"""The benchmark of true sizes runs from end to end on its tiny size; what it finds is not judged here."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "sdxl.py"


def run(monkeypatch, *arguments):
    monkeypatch.syspath_prepend(str(BENCH.parent))
    monkeypatch.setattr(sys, "argv", [str(BENCH), *arguments])
    runpy.run_path(str(BENCH), run_name="__main__")


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_the_tiny_size_runs_and_counts_its_rows(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "--tiny", "--size", "64", "--k", "1", "2", "--rounds", "1", "--out", str(tmp_path / "tiny.json"))
    told = json.loads((tmp_path / "tiny.json").read_text())
    assert told["tiny"] and told["size_px"] == 64
    assert [row["rows"] for row in told["table"]] == [100 + 34 * 5, 100 + 34 * 7]
    parts = {"layout", "personalise", "decode", "diffusers", "official"}
    assert all(row["seconds"].keys() == parts for row in told["table"])
    assert all(value > 0 for row in told["table"] for value in row["seconds"].values())
    assert capsys.readouterr().out.count("x as fast as the official schedule") == 2


def test_true_size_is_not_tried_where_there_is_no_device_for_it(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch)
    assert caught.value.code == 2 and "use --tiny" in capsys.readouterr().err
