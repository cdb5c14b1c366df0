"""Fixtures that run the command line in a folder with a scene, its masks and a library."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from costars.cli.main import main

SCENE = {
    "prompt": "photo of {a} and {b} in the forest",
    "cast": {"a": {"concept": "char_a", "where": "left.png"}, "b": {"concept": "char_b", "where": "right.png"}},
    "model": "tiny-sdxl",
    "size": [64, 64],
    "steps": 4,
    "seed": 3,
}


@pytest.fixture
def cli(monkeypatch, capsys, library, tmp_path):
    """Run a command line in a folder beside the library; returns (exit code, stdout, stderr)."""
    monkeypatch.setenv("COSTARS_LIBRARY", str(library))
    monkeypatch.setenv("COSTARS_BUILTIN", str(tmp_path / "nothing-shipped"))
    monkeypatch.setenv("COSTARS_DEVICE", "cpu")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["costars", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def folder(tmp_path, golden, monkeypatch) -> Path:
    """A folder with a scene, two mask files and a link to the checkpoint; the command runs in it."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "tiny-sdxl").symlink_to(golden / "tiny-sdxl")
    for name, columns in (("left", slice(0, 32)), ("right", slice(32, 64))):
        mask = np.zeros((64, 64), dtype=np.uint8)
        mask[:, columns] = 255
        Image.fromarray(mask).save(home / f"{name}.png")
    (home / "scene.yaml").write_text(yaml.safe_dump(SCENE))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def write(folder) -> Callable[..., None]:
    """Write the scene again with changes; a and b change those members."""

    def of(**changes: Any) -> None:
        cast = {name: member | changes.pop(name, {}) for name, member in SCENE["cast"].items()}
        (folder / "scene.yaml").write_text(yaml.safe_dump(SCENE | {"cast": cast} | changes))

    return of


@pytest.fixture
def expect_error(cli) -> Callable[..., None]:
    """Run a command line that must fail with exit code 2 and one line on stderr that contains the message.

    Lines of progress and notes may come before it.
    """

    def of(*words: object, message: str) -> None:
        code, out, err = cli(*words)
        assert message in err
        assert (code, out) == (2, "")
        lines = err.splitlines()
        assert err.endswith("\n") and [line.startswith("costars: ") for line in lines].index(True) == len(lines) - 1
        assert message in lines[-1] and "Traceback" not in err

    return of


@pytest.fixture
def images(folder, monkeypatch) -> Path:
    """A folder of two training images without captions, beside the model."""
    from costars.train.data import class_images

    monkeypatch.setattr(class_images, "INFERENCE_STEPS", 2)
    path = folder / "mia"
    path.mkdir()
    for colour in ("red", "green"):
        Image.new("RGB", (64, 64), colour).save(path / f"{colour}.png")
    return path


@pytest.fixture
def women(folder) -> Path:
    """A folder with one class image."""
    path = folder / "women"
    path.mkdir()
    Image.new("RGB", (64, 64), "blue").save(path / "a.png")
    return path


@pytest.fixture
def work(library) -> Path:
    """The folder of the checkpoint and the preview sheets of a run."""
    return library.parent / "training" / "mia"


@pytest.fixture
def new_concepts(library) -> Callable[[], list[str]]:
    """The files of the library that a command has added."""
    return lambda: sorted(path.name for path in library.iterdir() if not path.name.startswith("char_"))


@pytest.fixture
def expect_error_before_training(expect_error, new_concepts, work, monkeypatch) -> Callable[..., None]:
    """Like expect_error; also, no step is taken and no file is written."""
    from costars.train.run import TrainingRun

    def run(*words: object, message: str) -> None:
        before = new_concepts()
        monkeypatch.setattr(TrainingRun, "take_step", None)
        expect_error(*words, message=message)
        assert new_concepts() == before and not work.exists()

    return run


@pytest.fixture
def interrupt_step_2(monkeypatch) -> Callable[[], None]:
    """Ctrl-C in the second step of a run; call it to end this."""
    from costars.train.run import TrainingRun

    take_step = TrainingRun.take_step

    def interrupt(run: TrainingRun) -> None:
        if run.step == 1:
            raise KeyboardInterrupt
        take_step(run)

    monkeypatch.setattr(TrainingRun, "take_step", interrupt)
    return lambda: monkeypatch.setattr(TrainingRun, "take_step", take_step)


@pytest.fixture
def full_disk() -> Callable[..., None]:
    """A function that fails as a write to a full disk does."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fail
