"""Files and folders are written completely, or the old content stays."""

import errno

import pytest
import torch
from safetensors import SafetensorError, safe_open

from costars.errors import ConceptError
from costars.files.atomic import TensorFile, atomic_file, write_safetensors

ONE, TWO = ("mia.safetensors",), ("lora.safetensors", "embedding.safetensors")


def write(target, names=ONE, text="old", overwrite=False):
    files = {name: TensorFile({"a": torch.ones(2)}, {"text": text}) for name in names}
    return write_safetensors(files, target, len(names) > 1, overwrite)


def read_text(path):
    with safe_open(path, "pt") as file:
        return file.metadata()["text"]


def test_atomic_file_replaces_only_on_success(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with atomic_file(target) as partial:
        partial.write_text("old")
    with pytest.raises(ArithmeticError), atomic_file(target) as partial:
        partial.write_text("new")
        raise ArithmeticError
    assert target.read_text() == "old" and list(target.parent.iterdir()) == [target]


def test_error_of_safetensors_becomes_an_oserror(tmp_path):
    with pytest.raises(OSError, match="No space left"), atomic_file(tmp_path / "a") as partial:
        partial.touch()
        raise SafetensorError("I/O error:\n No space left")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("names", "target"), [(ONE, "mia.safetensors"), (TWO, "mia")])
def test_existing_target_is_replaced_only_with_overwrite(names, target, tmp_path):
    target = tmp_path / target
    paths = write(target, names)
    assert paths == ([target] if names is ONE else [target / name for name in names])
    before = {path: path.read_bytes() for path in paths}
    with pytest.raises(ConceptError, match="already exists; choose another --out, or use --replace"):
        write(target, names, "new")
    assert {path: path.read_bytes() for path in paths} == before
    assert write(target, names, "new", overwrite=True) == paths
    assert {read_text(path) for path in paths} == {"new"} and list(tmp_path.iterdir()) == [target]


def test_folder_of_other_files_or_link_is_never_replaced(tmp_path):
    folder, link = tmp_path / "pictures", tmp_path / "link"
    folder.mkdir()
    (folder / "mia.png").write_bytes(b"mine")
    link.symlink_to(folder)
    for target in (folder, link):
        with pytest.raises(ConceptError, match=r"is not a folder of \.safetensors files only and is not replaced"):
            write(target, TWO, overwrite=True)
    assert (folder / "mia.png").read_bytes() == b"mine"
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ConceptError, match="is not a plain file and is not replaced"):
        write(tmp_path / "folder.safetensors", overwrite=True)


@pytest.mark.parametrize(
    ("names", "target", "expected"),
    [
        (ONE, "mia", "this concept is written as one file, which must end with .safetensors"),
        (TWO, "mia.safetensors", "this concept is written as a folder, which must not end with .safetensors"),
    ],
)
def test_suffix_must_fit_file_or_folder(names, target, expected, tmp_path):
    with pytest.raises(ConceptError, match=expected):
        write(tmp_path / target, names)


@pytest.mark.parametrize(("names", "target"), [(ONE, "mia.safetensors"), (TWO, "mia")])
def test_failed_write_leaves_the_old_files(names, target, tmp_path, monkeypatch):
    target = tmp_path / target
    paths = write(target, names)
    written = []

    def fail_on_the_last_file(*_, **__):
        written.append(1)
        if len(written) % len(names) == 0:
            raise OSError("disk full")

    monkeypatch.setattr("costars.files.atomic.save_tensors", fail_on_the_last_file)
    before = sorted(tmp_path.rglob("*"))
    for out in (target, target.with_stem("new")):
        with pytest.raises(OSError, match="disk full"):
            write(out, names, "new", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before and {read_text(path) for path in paths} == {"old"}


def test_folders_are_exchanged_also_where_the_file_system_cannot(tmp_path, monkeypatch):
    monkeypatch.setattr("costars.files.atomic.exchange", lambda one, other: False)
    paths = write(tmp_path / "mia", TWO)
    assert write(tmp_path / "mia", TWO, "new", overwrite=True) == paths
    assert {read_text(path) for path in paths} == {"new"} and list(tmp_path.iterdir()) == [tmp_path / "mia"]


def test_old_folder_is_restored_if_the_move_fails(tmp_path, monkeypatch):
    from pathlib import Path

    paths = write(tmp_path / "mia", TWO)
    rename = Path.rename

    def fail(path, target):
        if "costars-" in str(path):
            raise OSError("gone")
        return rename(path, target)

    monkeypatch.setattr("costars.files.atomic.exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="gone"):
        write(tmp_path / "mia", TWO, "new", overwrite=True)
    assert {read_text(path) for path in paths} == {"old"} and list(tmp_path.iterdir()) == [tmp_path / "mia"]


def test_a_name_is_given_once_also_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "not supported")

    for links in (True, False):
        if not links:
            monkeypatch.setattr("os.link", no_links)
        target = tmp_path / f"{links}.txt"
        with atomic_file(target, replace=False) as first:
            first.write_text("first")
            with pytest.raises(FileExistsError), atomic_file(target, replace=False) as second:
                second.write_text("second")
                target.touch()
            target.unlink()
        assert target.read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["False.txt", "True.txt"]


def test_full_disk_is_named_with_the_target(tmp_path):
    problem = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    for error in (problem, OSError(errno.ENOSPC, "No space left on device")):
        with pytest.raises(OSError, match="No space left") as caught, atomic_file(tmp_path / "deep" / "a") as partial:
            partial.touch()
            raise error
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "deep" / "a"))
    assert list(tmp_path.iterdir()) == []
