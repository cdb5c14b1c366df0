"""Periodic checkpoints, and disks that are full."""

import errno
import os

import pytest
from safetensors import SafetensorError

from costars.train.checkpoint import load_checkpoint
from costars.train.loop import train
from costars.train.run import TrainingRun


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def test_full_disk_does_not_end_the_run(small, make_task, short_recipe, same_concept, trace, checkpoint, monkeypatch):
    """Training continues, the previous checkpoint is kept, and one step has a note."""

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    task = make_task(short_recipe("textual-inversion", steps=5))
    *steps, result = train(task)
    losses = [step.loss for step in steps]
    events = train(task, checkpoint)
    next(events), next(events)
    events.close()
    saved, before = checkpoint.read_bytes(), trace(small.unet)
    with monkeypatch.context() as patch:
        patch.setattr("costars.files.tensors.save_file", fail)
        *steps, resumed = train(task, checkpoint, resume=True, save_every_s=0)
    assert [step.loss for step in steps] == losses[2:] and same_concept(resumed.concepts[0], result.concepts[0])
    note, *others = (step.note for step in steps)
    assert note.startswith(f"{checkpoint}: cannot be written (No space left on device)")
    assert "training continues, the previous checkpoint is kept; next try in 0 s" in note and others == ["", ""]
    assert checkpoint.read_bytes() == saved and os.listdir(checkpoint.parent) == [checkpoint.name]
    assert trace(small.unet) == before
    *rest, resumed = train(task, checkpoint, resume=True)
    assert [step.loss for step in rest] == losses[2:] and same_concept(resumed.concepts[0], result.concepts[0])


def test_saving_is_retried_and_the_first_failure_is_reported(make_task, short_recipe, checkpoint, monkeypatch):
    real = TrainingRun.save

    def save(run, path):
        if run.step < 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(run, path)

    monkeypatch.setattr(TrainingRun, "save", save)
    events = train(make_task(short_recipe("textual-inversion")), checkpoint, save_every_s=0)
    notes = [next(events).note for _ in range(3)]
    assert load_checkpoint(checkpoint)[1]["step"] == "3"
    expected = f"{checkpoint}: cannot be written (No space left on device); training continues, there is no checkpoint"
    assert notes[0].startswith(expected) and "\n" not in notes[0] and notes[1:] == ["", ""]
    events.close()
