"""A training run with its files, as a server or the command line runs it."""

import errno

import pytest
import torch

from costars.concepts.load import load_concept
from costars.errors import TrainError
from costars.train.loop import Progress
from costars.train.output_files import TrainingFiles
from costars.train.results import TrainingResult
from costars.train.run import TrainingRun
from costars.train.session import Message, run_session


@pytest.fixture
def files(tmp_path):
    return TrainingFiles(concepts=(tmp_path / "mia.safetensors",), folder=tmp_path / "work")


def names(files):
    return sorted(path.name for path in files.folder.iterdir())


def test_session_writes_concept_and_sheets_and_removes_its_checkpoint(make_task, short_recipe, files):
    events = list(run_session(make_task(short_recipe("textual-inversion")), files, sheet_every=2))
    assert [event.step for event in events if isinstance(event, Progress)] == [1, 2, 3]
    assert [event.text for event in events if isinstance(event, Message)] == [f"preview: {files.sheet(3)}"]
    assert isinstance(events[-1], TrainingResult)
    assert names(files) == ["sheet-000002.png", "sheet-000003.png"]
    assert load_concept(files.concepts[0], "mia", "mia").trigger == "<mia>"


def test_closed_session_can_be_resumed(make_task, short_recipe, files):
    task = make_task(short_recipe("textual-inversion"))
    session = run_session(task, files)
    next(session)
    session.close()
    assert names(files) == ["checkpoint.safetensors"]
    events = list(run_session(task, files, resume=True))
    assert [event.step for event in events if isinstance(event, Progress)] == [2, 3]


def test_unwritable_concept_keeps_the_checkpoint(make_task, short_recipe, files, monkeypatch):
    def fail(result, targets, replace):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("costars.train.session.write_concepts", fail)
    with pytest.raises(TrainError, match=r"No space left on device; the checkpoint .* is kept"):
        list(run_session(make_task(short_recipe("textual-inversion", steps=1)), files))
    assert "checkpoint.safetensors" in names(files)


@pytest.mark.parametrize("error", [MemoryError("full"), torch.OutOfMemoryError("full")])
def test_out_of_memory_names_settings_that_need_less(make_task, short_recipe, files, monkeypatch, error):
    def fail(run):
        raise error

    monkeypatch.setattr(TrainingRun, "take_step", fail)
    with pytest.raises(TrainError, match=r"out of memory \(full\); --set a smaller batch_size"):
        list(run_session(make_task(short_recipe("textual-inversion")), files))
