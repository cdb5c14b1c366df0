"""The examples run; the smallest numbers of steps are used."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = ("own_method", "own_segmenter", "render_with_progress", "train_from_python")


def load_main(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_render_with_progress_prints_every_step_and_writes_the_picture(tmp_path, capsys):
    picture = load_main("render_with_progress")(tmp_path / "out", steps=8)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "layout: step 1 of 8, 2 UNet rows"
    assert lines[-1] == f"personalise: step 8 of 8, {picture.rows['stage2']} UNet rows"
    assert (tmp_path / "out" / "picture.png").is_file()
    with Image.open(tmp_path / "out" / "preview.png") as preview:  # of the last step: blurred, but the same colours
        shown = np.asarray(preview.resize((16, 16), Image.Resampling.BOX), dtype=float)
    drawn = np.asarray(picture.image.resize((16, 16), Image.Resampling.BOX), dtype=float)
    assert abs(shown - drawn).mean() < 30


def test_render_with_progress_can_be_cancelled(tmp_path, capsys):
    assert load_main("render_with_progress")(tmp_path / "out", steps=8, most_seconds=0) is None
    assert capsys.readouterr().out.splitlines() == ["layout: step 1 of 8, 2 UNet rows", "cancelled"]
    assert not (tmp_path / "out" / "picture.png").exists()


def test_train_from_python_writes_a_concept_and_a_picture(tmp_path):
    load_main("train_from_python")(tmp_path, steps=2, picture_steps=2)
    assert (tmp_path / "mia.safetensors").is_file()
    assert (tmp_path / "picture" / "picture.png").is_file()


def test_own_segmenter_gives_each_member_a_column(tmp_path):
    plan = load_main("own_segmenter")(tmp_path / "out", steps=2)
    assert {name: region.box for name, region in plan.regions.items()} == {
        "ana": (0.0, 0.0, 0.5, 1.0),
        "dan": (0.5, 0.0, 1.0, 1.0),
    }
    assert (tmp_path / "out" / "picture.png").is_file()


def test_own_method_is_selected_by_its_name_with_its_options(tmp_path):
    """In a process of its own: a method must be added before the first scene is read."""
    command = [sys.executable, EXAMPLES / "own_method.py", "--out", tmp_path, "--steps", "2"]
    subprocess.run(command, check=True, timeout=240)
    pictures = {(tmp_path / share / "picture.png").read_bytes() for share in ("0.5", "0.7")}
    assert len(pictures) == 2


@pytest.mark.parametrize("name", [*SCRIPTS, "averaged/method", "averaged/options"])
def test_examples_are_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60
