"""Files of other formats with the name .safetensors are rejected by their first bytes."""

import json
import struct

import pytest

from costars.errors import ConceptError, ModelError
from costars.files.magic import check_magic, is_pickle
from costars.files.safetensors_header import read_header


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"PK\x03\x04" + b"\0" * 60, "is a zip archive (the format of torch pickles"),
        (b"\x80\x02}q\0" + b"\1" * 60, "is a pickle, which can run code when opened; use its .safetensors version"),
        (b"<!DOCTYPE html><html>log in</html>", "is a web page instead of the file; log in there"),
        (b"\n <html>" + b" " * 60, "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "is a git-LFS pointer instead of the file"),
        (b"GGUF\x03\0\0\0" + b"\1" * 60, "is a GGUF file"),
        (b'{"activation text": "zxa woman", "notes": ""}', "is a JSON text file"),
        (b"\x89PNG\r\n\x1a\n" + b"\1" * 60, "is an image"),
        (b"\xff\xd8\xff" + b"\1" * 60, "is an image"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_other_file_formats_are_named(tmp_path, content, expected):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConceptError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"mine.safetensors: {expected}") and "\n" not in str(caught.value)


def test_error_type_is_the_callers(tmp_path):
    with pytest.raises(ModelError, match="is a GGUF file"):
        check_magic(tmp_path / "a", b"GGUF", ModelError)
    check_magic(tmp_path / "a", b"\x10\0\0\0\0\0\0\0{", ModelError)


def test_pickle_is_recognized_whatever_its_name(tmp_path):
    header = {"__metadata__": {"a": ""}}
    header["__metadata__"]["a"] = " " * (640 - len(json.dumps(header)))
    contents = {
        "zip.safetensors": b"PK\x03\x04",
        "old.bin": b"\x80\x02}q\0",
        "text.pth": b"{}",
        "header_640.safetensors": struct.pack("<Q", 640) + json.dumps(header).encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert [name for name in contents if is_pickle(tmp_path / name)] == ["zip.safetensors", "old.bin"]
    assert not is_pickle(tmp_path / "missing.pth")
