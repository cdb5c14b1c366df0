"""costars train: interrupted runs, and files that cannot be written."""

from functools import partial

import pytest
from safetensors import SafetensorError

from costars.concepts.load import load_concept
from costars.train.checkpoint import load_checkpoint
from costars.train.loop import train
from costars.train.run import TrainingRun

pytestmark = pytest.mark.usefixtures("images")

LORA = ("train", "lora", "--images", "mia", "--name", "mia", "--class", "woman", "--model", "tiny-sdxl")
SHORT = ("--set", "steps=2", "--set", "rank=2", "--set", "alpha=2", "--set", "gradient_checkpointing=false")
SHORT = (*SHORT, "--set", "gradient_accumulation_steps=1", "--set", "max_aspect_ratio=1")
WORD = ("train", "textual-inversion", *LORA[2:], *SHORT, "--set", "embedding_lr=0.01")


def test_interrupt_step_2_run_with_replace_suggests_resume_with_replace(cli, library, work, interrupt_step_2):
    checkpoint = work / "checkpoint.safetensors"
    assert cli(*WORD, "--replace")[2].splitlines()[-2:] == [
        f"saved {checkpoint}; continue with --resume --replace",
        "costars: stopped",
    ]
    assert f"{checkpoint}: checkpoint of an unfinished run is discarded" in cli(*WORD, "--replace")[2].splitlines()


def test_interrupt_step_2_run_is_resumed(cli, expect_error, library, work, interrupt_step_2, new_concepts):
    assert cli(*WORD, "--name", "bob")[0] == 130
    code, out, err = cli(*WORD)
    message = f"saved {work / 'checkpoint.safetensors'}; continue with --resume"
    assert (code, out, err.splitlines()[-2:]) == (130, "", [message, "costars: stopped"])
    assert new_concepts() == [] and [path.name for path in work.iterdir()] == ["checkpoint.safetensors"]
    interrupt_step_2()
    checkpoint = work / "checkpoint.safetensors"
    assert load_checkpoint(checkpoint)[1]["step"] == "1"
    expect_error(
        *WORD,
        message=f"{checkpoint}: is the checkpoint of an unfinished run; use --resume, or --replace to start again",
    )
    message = "checkpoint.safetensors: started with seed=0, now seed=3; start again with --replace instead of --resume"
    expect_error(*WORD, "--resume", "--set", "seed=3", message=message)
    code, _, err = cli(*WORD, "--resume")
    assert code == 0 and f"preview: {work / 'sheet-000002.png'}" in err.splitlines(), err
    assert any(line.startswith("training 2/2, loss ") for line in err.splitlines()), err
    assert new_concepts() == ["mia.safetensors"] and [p.name for p in work.iterdir()] == ["sheet-000002.png"]
    code, _, err = cli(*WORD, "--name", "eve")
    assert code == 0, err
    one, other = (load_concept(library / f"{name}.safetensors", "", "") for name in ("mia", "eve"))
    assert one.tokens["<mia>"]["text_encoder"].equal(other.tokens["<eve>"]["text_encoder"])
    code, _, err = cli(*WORD, "--name", "bob", "--replace")
    assert code == 0, err


def test_full_disk_does_not_end_training(cli, library, work, monkeypatch, new_concepts, full_disk):
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.flush", full_disk)
    monkeypatch.setattr("costars.train.session.save_image", full_disk)
    code, _, err = cli(*WORD, "--tensorboard", "events")
    assert code == 0 and new_concepts() == ["mia.safetensors"], err
    message = "cannot be written (No space left on device); training continues without it"
    lines = [line for line in err.splitlines() if message in line]
    assert lines == [f"--tensorboard events: {message}", f"{work / 'sheet-000002.png'}: {message}"]
    assert "preview: " not in err


def test_unwritable_checkpoint_is_reported_once(cli, library, work, monkeypatch, new_concepts, full_disk):
    monkeypatch.setattr("costars.train.session.train", partial(train, save_every_s=0))
    monkeypatch.setattr(TrainingRun, "save", full_disk)
    code, _, err = cli(*WORD)
    assert code == 0 and new_concepts() == ["mia.safetensors"], err
    message = f"{work / 'checkpoint.safetensors'}: cannot be written (No space left on device); training continues"
    assert [line.startswith(message) for line in err.splitlines()].count(True) == 1, err


def test_checkpoint_is_kept_if_the_concept_cannot_be_written(cli, expect_error, library, folder, work, monkeypatch):
    def torn(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    checkpoint = work / "checkpoint.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("costars.concepts.saving.save_tensors", torn)
        code, out, err = cli(*WORD)
    message = f"the checkpoint {checkpoint} is kept; free disk space or choose another --out, then use --resume"
    assert (code, out) == (2, "") and err.splitlines()[-1].endswith(message), err
    assert err.splitlines()[-1].startswith(f"costars: {library / 'mia.safetensors'}: No space left on device")
    assert "No space left on device" in err and "Traceback" not in err
    assert sorted(path.name for path in library.iterdir()) == ["char_a.safetensors", "char_b.safetensors"]
    assert load_checkpoint(checkpoint)[1]["step"] == "2"
    code, out, err = cli(*WORD, "--resume", "--out", "elsewhere")
    assert (code, out) == (0, "elsewhere/mia.safetensors\n"), err
    assert not checkpoint.exists()


def test_interrupt_on_a_full_disk_reports_the_checkpoint(cli, work, interrupt_step_2, monkeypatch, full_disk):
    monkeypatch.setattr("costars.train.checkpoint.save_tensors", full_disk)
    code, _, err = cli(*WORD)
    message = f"{work / 'checkpoint.safetensors'}: cannot be written (No space left on device)"
    assert (code, err.splitlines()[-2:]) == (130, [message, "costars: stopped"])
