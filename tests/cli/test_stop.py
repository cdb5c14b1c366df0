"""SIGTERM ends a command as Ctrl-C does: one line, exit code 143, a training's checkpoint, and nothing half written."""

import os
import signal
import subprocess
import sys

import pytest

from costars.__main__ import main
from costars.studio import Studio

LORA = ("train", "lora", "--images", "mia", "--name", "mia", "--class", "woman", "--model", "tiny-sdxl")
SHORT = ("--set", "steps=3", "--set", "rank=2", "--set", "alpha=2", "--set", "gradient_checkpointing=false")
SHORT = (*SHORT, "--set", "gradient_accumulation_steps=1", "--set", "max_aspect_ratio=1")


@pytest.fixture
def run(cli, monkeypatch, capsys):
    """Run a command as the program costars does; returns (exit code, last line on stderr)."""

    def run_main(*words):
        monkeypatch.setattr(sys, "argv", ["costars", *words])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
        return code, capsys.readouterr().err.splitlines()

    return run_main


def terminate(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def test_terminated_render_leaves_nothing(run, folder, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    names = sorted(folder.iterdir())
    monkeypatch.setattr(Studio, "render_steps", terminate)
    code, lines = run("render", "scene.yaml", "--out", "out")
    assert (code, lines[-1]) == (143, "costars: stopped") and sorted(folder.iterdir()) == names
    assert signal.getsignal(signal.SIGTERM) is before


def test_terminated_training_can_be_resumed(run, images, work, library, monkeypatch):
    from costars.train.run import TrainingRun

    take_step = TrainingRun.take_step

    def terminate_at_step_2(training):
        take_step(training)
        if training.step == 2:
            terminate()

    monkeypatch.setattr(TrainingRun, "take_step", terminate_at_step_2)
    code, lines = run(*LORA, *SHORT)
    assert code == 143 and "costars: stopped" in lines[-1]
    assert any("checkpoint.safetensors; continue with --resume" in line for line in lines)
    assert sorted(path.name for path in work.iterdir()) == ["checkpoint.safetensors"]
    monkeypatch.setattr(TrainingRun, "take_step", take_step)
    code, lines = run(*LORA, *SHORT, "--resume")
    assert code == 0 and (library / "mia.safetensors").is_file(), lines


def test_terminated_process_exits_with_143(tmp_path):
    program = "import os, signal, sys; from costars import __main__; sys.argv = ['costars', 'schema']\n"
    program += "import typer; typer.echo = lambda *_: os.kill(os.getpid(), signal.SIGTERM); __main__.main()"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (143, "costars: stopped\n", "")


def test_closed_pipe_is_no_error():
    command = f"{sys.executable} -m costars schema | head -c 10 > /dev/null; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr == "" and ended.stdout.splitlines()[-1] in ("0", "141")
