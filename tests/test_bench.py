"""The benchmarks of true sizes run from end to end on their tiny size.

Their clock counts rows of the UNet, so that every time that they report is known exactly.
"""

import json
import runpy
import sys
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel

BENCH = Path(__file__).parents[1] / "bench"


def run(monkeypatch, script, *arguments):
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(BENCH / script), run_name="__main__")


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each row of a UNet call takes one second, and nothing else takes any."""
    seconds, forward = [0.0], UNet2DConditionModel.forward

    def counted(self, sample, *args, **kwargs):
        seconds[0] += len(sample)
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr("timing.now", lambda device: seconds[0])
    monkeypatch.setattr("timing.measure_ceilings", lambda device: {"copy_tb_s": 1.0, "matmul_tflop_s": 1.0})
    return lambda: seconds[0]


ALREADY_LOADED = "ignore:Already found a `peft_config` attribute"


def run_sdxl(monkeypatch, out, *arguments):
    tiny = ("sdxl.py", "--tiny", "--size", "64", "--steps", "4", "--rounds", "1", "--out", str(out), *arguments)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *tiny)
    return ended.value.code, json.loads(out.read_text())


@pytest.mark.filterwarnings(ALREADY_LOADED)
def test_sdxl_measures_every_memory_tier_number_of_concepts_and_dtype(clock, monkeypatch, tmp_path, capsys):
    options = ("--k", "2", "--memory", "full", "offload")
    code, report = run_sdxl(monkeypatch, tmp_path / "tiny.json", *options)
    assert code == 0 and report["tiny"] and report["size_px"] == 64 and not report["skipped"] and not report["failed"]
    rows = {name: result for name, result in report["measured"].items() if "rows" in result}
    assert [*rows] == ["float32 full k=2", "float32 offload k=2"]
    assert [row["rows"] for row in rows.values()] == 2 * [100 + 34 * 7]
    for row in rows.values():
        k, ours = row["k"], {"layout": 50 * 2, "personalise": 34 * (3 + 2 * row["k"])}
        assert row["step_seconds"] == {"layout": 2, "personalise": 3 + 2 * k}
        baselines = {"diffusers": sum(ours.values()), "official": 50 * 8 + 34 * 2 * k}
        compared = baselines if row["memory"] == "full" else {}
        del row["seconds"]["resolve"]  # by another clock: it calls no UNet
        assert row["seconds"] == {**ours, **compared, "decode": 0}
        if row["memory"] == "full":
            assert row["over_diffusers"] == 1
            assert row["times_faster_than_official"] == baselines["official"] / baselines["diffusers"]
    assert capsys.readouterr().out.count("x as fast as the official schedule") == 1
    check_precision(report["measured"]["precision"])


def check_precision(precision):
    """Errors of latents are as large as their dtype makes them."""
    errors = precision["relative_error"]
    assert precision["steps"] == 4
    assert errors.keys() == {"bfloat16", "float16"}
    for stage in ("layout", "personalise"):
        assert all(each["all"] == each["unet_only"] for each in errors.values())
        assert 1e-3 < errors["bfloat16"]["all"][stage] < 0.1
        assert 1e-4 < errors["float16"]["all"][stage] < errors["bfloat16"]["all"][stage] / 2


def test_measurements_after_the_deadline_are_named_and_skipped(monkeypatch, tmp_path, capsys):
    code, report = run_sdxl(monkeypatch, tmp_path / "tiny.json", "--k", "1", "--deadline", "0")
    assert code == 0 and not report["measured"]
    assert report["skipped"] == [
        "ceilings",
        "float32 full diffusers",
        "float32 full official",
        "float32 full k=1",
        "precision",
    ]
    assert "skipped: ceilings" in capsys.readouterr().out


@pytest.mark.filterwarnings(ALREADY_LOADED)
def test_other_measurements_run_after_one_fails(clock, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr("baselines.BATCHES", ("two",))
    code, report = run_sdxl(monkeypatch, tmp_path / "tiny.json", "--k", "1", "--no-precision")
    assert code == 1 and [*report["failed"]] == ["float32 full diffusers"]
    row = report["measured"]["float32 full k=1"]
    assert "over_diffusers" not in row and row["times_faster_than_official"] == 468 / 270


def test_both_loops_of_training_take_their_steps(clock, monkeypatch, tmp_path, capsys):
    out = tmp_path / "training.json"
    monkeypatch.setattr("time.perf_counter", clock)
    run(monkeypatch, "training.py", "--tiny", "--size", "64", "--steps", "3", "--out", str(out))
    told = json.loads(out.read_text())
    assert told["tiny"] and told["peak_gib"] == {"diffusers": None, "costars": None}
    assert told["seconds"] == {"diffusers": 1, "costars": 1} and told["over_diffusers"] == 1  # one row in each step
    assert "costars takes 1.00 x as long" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["sdxl.py", "training.py"])
def test_true_size_is_not_tried_where_there_is_no_device_for_it(script, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, script)
    assert caught.value.code == 2 and "use --tiny" in capsys.readouterr().err
