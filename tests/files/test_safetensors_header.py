"""The header is checked before any tensor is read: any bytes give a header or an error of one line."""

import hashlib
import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from costars.concepts.load import load_concept
from costars.errors import ConceptError
from costars.files.safetensors_header import (
    MAX_HEADER_BYTES,
    MAX_KEY,
    MAX_SIZE,
    MAX_TENSORS,
    Entry,
    compute_sha256,
    read_header,
)

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SHAPES = {f"{LAYER}.lora_A.weight": (2, 6), f"{LAYER}.lora_B.weight": (5, 2), f"{LAYER}.alpha": ()}
WHOLE = save({key: torch.ones(shape) for key, shape in SHAPES.items()}, {"ss_base_model_version": "sdxl_base_v1-0"})


@pytest.fixture
def error_for(tmp_path):
    """Return a function that reads a file of these bytes and gives the error message."""

    def read(content: bytes) -> str:
        path = tmp_path / "mine.safetensors"
        path.write_bytes(content)
        with pytest.raises(ConceptError) as caught:
            read_header(path)
        assert str(caught.value).startswith("mine.safetensors: ") and "\n" not in str(caught.value)
        return str(caught.value)

    return read


def pack(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape=(2,), begin=0, end=8, dtype="F32", **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def test_header_of_a_file_written_by_safetensors(tmp_path):
    (tmp_path / "a").write_bytes(WHOLE)
    header = read_header(tmp_path / "a")
    assert header.metadata == {"ss_base_model_version": "sdxl_base_v1-0"}
    assert header.tensors == {key: Entry("F32", shape) for key, shape in SHAPES.items()}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a readable .safetensors file (it is empty); fetch it again"),
        (b"\1\0\0", "it has 3 bytes"),
        (b"\xff" * 100, "header of 18446744073709551615 bytes, at most 100000000 are allowed"),
        (WHOLE[:100], "truncated: header of 432 bytes, 92 are present"),
        (WHOLE[:-1], "truncated: tensors of 92 bytes, 91 are present"),
        (WHOLE + b"\0", "(tensors of 92 bytes, 93 are present)"),
        (pack(b"{ not json }"), "header is not JSON"),
        (pack(b'{"a": 1, "a": 2}'), "or has a duplicate key"),
        (pack(b"{" * 100_000), "header is not JSON"),
        (pack(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "header is not JSON"),
        (pack(b'{"\xff": 1}'), "header is not JSON"),
        (pack([1, 2, 3]), "header is not a JSON object"),
        (pack({"__metadata__": {"a": 1}}), "metadata is not a JSON object of strings"),
        (pack({"__metadata__": None}), "metadata is not a JSON object of strings"),
        (pack({str(i): 0 for i in range(MAX_TENSORS + 1)}), "20001 tensors, at most 20000 are allowed"),
        (pack({"k" * (MAX_KEY + 1): tensor()}, b"\0" * 8), "key of 513 characters"),
        (pack({"a": 3}), "'a' must have exactly dtype, shape and data_offsets"),
        (pack({"a": tensor(more=1)}, b"\0" * 8), "'a' must have exactly dtype, shape"),
        (pack({"a": tensor(dtype="F4")}, b"\0" * 8), "'a' has unknown dtype 'F4', known: BOOL"),
        (pack({"a": tensor(dtype=[])}, b"\0" * 8), "'a' has unknown dtype '[]'"),
        (pack({"a": tensor(shape=(-2,))}, b"\0" * 8), "'a' has an invalid shape"),
        (pack({"a": tensor(shape=(2.0,))}, b"\0" * 8), "'a' has an invalid shape"),
        (pack({"a": tensor(shape=(True,))}, b"\0" * 4), "'a' has an invalid shape"),
        (pack({"a": tensor(shape=(1, MAX_SIZE + 1))}), "'a' has an invalid shape, at most 5 axes of 65536 are allowed"),
        (pack({"a": tensor(shape=(1,) * 6)}), "'a' has an invalid shape, at most 5 axes"),
        (pack({"a": tensor(end=12)}, b"\0" * 12), "'a' of shape (2,) in F32 does not take 12 bytes"),
        (pack({"a": tensor(begin=8, end=0)}, b"\0" * 8), "does not take -8 bytes"),
        (pack({"a": tensor(end=1.5)}, b"\0" * 8), "'a' has invalid data_offsets, expected two"),
        (pack({"a": tensor(begin=4, end=12)}, b"\0" * 12), "'a' starts at byte 4, expected 0"),
        (pack({"a": tensor(), "b": tensor(begin=4, end=12)}, b"\0" * 12), "'b' starts at byte 4, expected 8"),
        (pack({"a": tensor(), "b": tensor(begin=16, end=24)}, b"\0" * 24), "'b' starts at byte 16, expected 8"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_damaged_header_is_rejected_in_one_line(error_for, content, expected):
    assert expected in error_for(content)


def test_header_limit_is_that_of_safetensors(error_for):
    assert "at most 100000000" in error_for(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}")


def test_header_of_640_bytes_is_not_taken_for_a_pickle(tmp_path):
    """640 is 0x0280, so the file starts with the two bytes of a pickle."""
    header = {"__metadata__": {"a": ""}}
    header["__metadata__"]["a"] = " " * (640 - len(json.dumps(header)))
    path = tmp_path / "a"
    path.write_bytes(pack(header))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert read_header(path).tensors == {}


@pytest.mark.parametrize(
    ("name", "reason"), [("gone.safetensors", "no such file; check the path"), (".", "is a folder, not a file")]
)
def test_missing_file_is_rejected(tmp_path, name, reason):
    with pytest.raises(ConceptError, match=f"/.*: {reason}"):
        read_header(tmp_path / name)


@given(st.data())
def test_corrupted_file_loads_or_fails_in_one_line(tmp_path_factory, data):
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 3))
        content[start : start + length] = data.draw(st.binary(max_size=4))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    path = tmp_path_factory.mktemp("corrupt") / "mine.safetensors"
    path.write_bytes(content)
    try:
        load_concept(path, "mine", "mine")
    except ConceptError as error:
        assert "\n" not in str(error)


KEYS = st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a.alpha"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.binary(max_size=16))
def test_any_json_header_is_read_or_fails_in_one_line(tmp_path_factory, header, content):
    path = tmp_path_factory.mktemp("json") / "mine.safetensors"
    path.write_bytes(pack(header, content))
    try:
        read_header(path)
    except ConceptError as error:
        assert "\n" not in str(error)


def test_sha256_of_a_folder_is_that_of_its_safetensors_by_name(tmp_path):
    for name, content in (("b.safetensors", b"2"), ("a.safetensors", b"1"), ("c.txt", b"3")):
        (tmp_path / name).write_bytes(content)
    expected = hashlib.sha256(b"12").hexdigest()
    assert compute_sha256(tmp_path) == expected
    assert compute_sha256(tmp_path / "a.safetensors", tmp_path / "b.safetensors") == expected
