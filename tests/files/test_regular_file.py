"""Only regular files are opened, in full only up to a limit, and each failure is one line."""

import os
import socket
from pathlib import Path

import pytest

from costars.errors import ReadError
from costars.files.regular_file import expand_user, is_there, open_regular, read_bytes, read_text


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A folder with everything that a path can be."""
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    Path("link").symlink_to("pipe")
    Path("circle").symlink_to("circle")
    Path("device").symlink_to("/dev/zero")
    Path("folder").mkdir()
    Path("text").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    Path("latin").write_bytes(b"caf\xe9")


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pipe", "pipe: is a named pipe, not a file; give a regular file"),
        ("link", "link: is a named pipe, not a file"),
        ("socket", "socket: is a socket, not a file"),
        ("device", "device: is a device, not a file"),
        ("folder", "folder: is a folder, not a file"),
        ("circle", "circle: cannot be read (Too many levels of symbolic links); check the path"),
        ("gone", "gone: cannot be read (No such file or directory); check the path"),
        ("text/deeper", "cannot be read (Not a directory)"),
        ("x" * 300, "cannot be read (File name too long)"),
        ("nul\0", "cannot be a path (embedded null byte)"),
        ("latin", "latin: is not UTF-8 text (byte 0xe9 at position 3); save it as UTF-8"),
    ],
)
def test_what_is_not_a_readable_file_is_refused(name, reason):
    with pytest.raises(ReadError) as caught:
        read_text(Path(name))
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert is_there(Path(name)) == (name in ("pipe", "link", "socket", "device", "folder", "latin"))


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize("name", ["pipe", "socket", "device", "folder"])
def test_what_is_not_a_file_is_not_even_opened(name, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    with pytest.raises(ReadError):
        open_regular(Path(name))


@pytest.mark.usefixtures("odd")
def test_regular_file_is_read_up_to_the_limit():
    assert read_text(Path("text")) == "caf\xe9"
    assert read_bytes(Path("latin"), most=4) == b"caf\xe9"
    with pytest.raises(ReadError, match="latin: is larger than 3 bytes, the most that is read; give a smaller file"):
        read_bytes(Path("latin"), most=3)


def test_pipe_in_the_place_of_a_checked_file_is_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    monkeypatch.setattr(Path, "stat", lambda path: os.stat(tmp_path / "file"))
    with pytest.raises(ReadError, match="is a named pipe"):
        open_regular(tmp_path / "pipe")


def test_home_of_an_unknown_user_is_refused():
    assert expand_user("~/x") == Path.home() / "x"
    with pytest.raises(ReadError, match=r"~nobody-here/x: no such user's home folder; write the whole path"):
        expand_user("~nobody-here/x")
