"""Temporary folders of dead runs are removed, those of running ones are kept; a lock ends with its process."""

import multiprocessing
import os
import signal

import pytest

from costars.files.temporary import PREFIX, claimed_folder, locked_folder, new_folder, temporary_folder


def hold(folder, ready):
    with temporary_folder(folder) as path, locked_folder(folder):
        (path / "half").write_bytes(b"half")
        ready.set()
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """Another process that has a temporary folder in, and the lock of, tmp_path."""
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    process = fork.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    yield process
    process.kill()
    process.join()


def test_folder_of_a_running_process_is_kept_and_that_of_a_dead_one_is_removed(holder, tmp_path):
    with temporary_folder(tmp_path), claimed_folder(tmp_path) as mine:
        assert not mine and len(list(tmp_path.glob(f"{PREFIX}*"))) == 2
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert len(list(tmp_path.glob(f"{PREFIX}*"))) == 1
    with temporary_folder(tmp_path), claimed_folder(tmp_path) as mine:
        assert mine and len(list(tmp_path.glob(f"{PREFIX}*"))) == 1
    assert list(tmp_path.iterdir()) == []


def test_link_with_the_name_of_a_leftover_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").touch()
    (tmp_path / f"{PREFIX}x").symlink_to(tmp_path / "mine")
    with temporary_folder(tmp_path):
        pass
    assert (tmp_path / "mine" / "a").is_file()


def test_new_folder_is_removed_on_failure_if_it_is_empty(tmp_path):
    for name in ("empty", "full"):
        with pytest.raises(ArithmeticError), new_folder(tmp_path / name / "deep"):
            if name == "full":
                (tmp_path / name / "deep" / "a").touch()
            raise ArithmeticError
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
