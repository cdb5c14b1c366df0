"""Files of a training run: where they are, and checks before it starts."""

import pytest

from costars.errors import TrainError
from costars.train.config import parse_config
from costars.train.output_files import check_files, describe_resumption, locate_files

MIA = {"name": "mia", "class": "woman", "images": "mia"}
REX = {"name": "rex", "class": "dog", "images": "rex"}


def config(*concepts):
    return parse_config({"recipe": "lora", "concepts": list(concepts)})


@pytest.fixture
def library(tmp_path):
    (tmp_path / "concepts").mkdir()
    return tmp_path / "concepts"


def test_default_files_are_in_the_library_and_next_to_it(library):
    files = locate_files(config(MIA, REX), library)
    assert files.concepts == (library / "mia.safetensors", library / "rex.safetensors")
    assert files.folder == library.parent / "training" / "mia-rex"
    assert files.checkpoint == files.folder / "checkpoint.safetensors"
    assert files.sheet(7).name == "sheet-000007.png"


def test_out_is_a_folder_or_the_file_of_a_single_concept(library, tmp_path):
    assert locate_files(config(MIA), library, tmp_path / "a.safetensors").concepts == (tmp_path / "a.safetensors",)
    assert locate_files(config(MIA), library, tmp_path / "out").concepts == (tmp_path / "out" / "mia.safetensors",)
    several = locate_files(config(MIA, REX), library, tmp_path / "out", folder=tmp_path / "work")
    assert several.concepts == (tmp_path / "out" / "mia.safetensors", tmp_path / "out" / "rex.safetensors")
    assert several.folder == tmp_path / "work"


def test_existing_concept_needs_replace(library):
    files = locate_files(config(MIA), library)
    files.concepts[0].write_bytes(b"mine")
    with pytest.raises(TrainError, match=r"mia.safetensors: already exists; choose another --name or --out"):
        check_files(files)
    check_files(files, replace=True)
    files.concepts[0].unlink()
    files.concepts[0].mkdir()
    with pytest.raises(TrainError, match="is a folder; choose another"):
        check_files(files, replace=True)


@pytest.mark.parametrize("replace", [False, True])
def test_a_finished_run_cannot_be_resumed_and_says_so(library, replace):
    files = locate_files(config(MIA), library)
    files.concepts[0].write_bytes(b"")
    with pytest.raises(TrainError, match=r"^--resume: the run that made .*mia.safetensors has finished, .* --replace"):
        check_files(files, resume=True, replace=replace)


def test_checkpoint_needs_resume_or_replace_and_resume_needs_a_checkpoint(library):
    files = locate_files(config(MIA), library)
    with pytest.raises(TrainError, match=r"--resume: no checkpoint in .*; leave it out to start a run"):
        check_files(files, resume=True)
    files.folder.mkdir(parents=True)
    files.checkpoint.write_bytes(b"")
    files.class_latents.write_bytes(b"")
    with pytest.raises(
        TrainError, match=": is the checkpoint of an unfinished run; use --resume, or --replace to start again"
    ):
        check_files(files)
    check_files(files, resume=True)
    check_files(files, replace=True)
    assert "then use --resume" in describe_resumption(files)
    files.concepts[0].write_bytes(b"")
    assert "then use --resume --replace" in describe_resumption(files)
    files.remove_checkpoint()
    assert list(files.folder.iterdir()) == [] and "start again" in describe_resumption(files)
