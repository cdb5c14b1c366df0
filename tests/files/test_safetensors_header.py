"""The header is checked before any tensor is read: whatever the bytes are, the answer is one line or a header."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from costars.concepts.load import load_concept
from costars.errors import ConceptError
from costars.files.safetensors_header import MAX_HEADER_BYTES, MAX_KEY, MAX_SIZE, MAX_TENSORS, Entry, read_header

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
SHAPES = {f"{LAYER}.lora_A.weight": (2, 6), f"{LAYER}.lora_B.weight": (5, 2), f"{LAYER}.alpha": ()}
WHOLE = save({key: torch.ones(shape) for key, shape in SHAPES.items()}, {"ss_base_model_version": "sdxl_base_v1-0"})


@pytest.fixture
def said(tmp_path):
    """What is said of a file of these bytes, without its name."""

    def of(content: bytes) -> str:
        path = tmp_path / "mine.safetensors"
        path.write_bytes(content)
        with pytest.raises(ConceptError) as caught:
            read_header(path)
        assert str(caught.value).startswith("mine.safetensors: ") and "\n" not in str(caught.value)
        return str(caught.value)

    return of


def packed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape=(2,), begin=0, end=8, dtype="F32", **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def test_a_whole_header_is_read_as_safetensors_reads_it(tmp_path):
    (tmp_path / "a").write_bytes(WHOLE)
    header = read_header(tmp_path / "a")
    assert header.metadata == {"ss_base_model_version": "sdxl_base_v1-0"}
    assert header.tensors == {key: Entry("F32", shape) for key, shape in SHAPES.items()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + b"\0" * 60, "is a zip archive, as torch's pickles are"),
        (b"\x80\x02}q\0" + b"\1" * 60, "is a pickle, which can run code when opened; use the .safetensors of it"),
        (b"<!DOCTYPE html><html>log in</html>", "is a web page, not the file behind it; log in there"),
        (b"\n <html>" + b" " * 60, "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "is a git-LFS pointer, not the file"),
        (b"GGUF\x03\0\0\0" + b"\1" * 60, "is a GGUF file"),
        (b'{"activation text": "zxa woman", "notes": ""}', "is a text file in JSON"),
        (b"\x89PNG\r\n\x1a\n" + b"\1" * 60, "is a picture"),
        (b"", "not a readable .safetensors file (it is empty); fetch it again"),
        (b"\1\0\0", "it has 3 bytes"),
        (b"\xff" * 100, "header would be 18446744073709551615 bytes, at most 100000000 are allowed"),
        (WHOLE[:100], "cut off: its header is 432 bytes, 92 are there"),
        (WHOLE[:-1], "cut off: its tensors take 92 bytes, 91 are there"),
        (WHOLE + b"\0", "its tensors take 92 bytes, 93 are there"),
        (packed(b"{ not json }"), "its header is not JSON"),
        (packed(b'{"a": 1, "a": 2}'), "or names a key twice"),
        (packed(b"{" * 100_000), "its header is not JSON"),
        (packed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "its header is not JSON"),
        (packed(b'{"\xff": 1}'), "its header is not JSON"),
        (packed([1, 2, 3]), "its header is not a JSON object"),
        (packed({"__metadata__": {"a": 1}}), "its metadata is not a JSON object of strings"),
        (packed({"__metadata__": None}), "its metadata is not a JSON object of strings"),
        (packed({str(i): 0 for i in range(MAX_TENSORS + 1)}), "it has 20001 tensors, at most 20000 are allowed"),
        (packed({"k" * (MAX_KEY + 1): tensor()}, b"\0" * 8), "a key of 513 characters"),
        (packed({"a": 3}), "'a' does not say its dtype, shape and data_offsets"),
        (packed({"a": tensor(more=1)}, b"\0" * 8), "or says more"),
        (packed({"a": tensor(dtype="F4")}, b"\0" * 8), "'a' has the dtype 'F4', known: BOOL"),
        (packed({"a": tensor(dtype=[])}, b"\0" * 8), "'a' has the dtype '[]'"),
        (packed({"a": tensor(shape=(-2,))}, b"\0" * 8), "'a' has a shape of more than"),
        (packed({"a": tensor(shape=(2.0,))}, b"\0" * 8), "'a' has a shape of more than"),
        (packed({"a": tensor(shape=(True,))}, b"\0" * 4), "'a' has a shape of more than"),
        (packed({"a": tensor(shape=(1, MAX_SIZE + 1))}), "'a' has a shape of more than 5 axes or 65536 along one"),
        (packed({"a": tensor(shape=(1,) * 6)}), "'a' has a shape of more than 5 axes"),
        (packed({"a": tensor(end=12)}, b"\0" * 12), "'a' of shape (2,) in F32 does not take 12 bytes"),
        (packed({"a": tensor(begin=8, end=0)}, b"\0" * 8), "does not take -8 bytes"),
        (packed({"a": tensor(end=1.5)}, b"\0" * 8), "'a' has data_offsets that are not two whole numbers"),
        (packed({"a": tensor(begin=4, end=12)}, b"\0" * 12), "'a' lies at byte 4, want 0"),
        (packed({"a": tensor(), "b": tensor(begin=4, end=12)}, b"\0" * 12), "'b' lies at byte 4, want 8"),
        (packed({"a": tensor(), "b": tensor(begin=16, end=24)}, b"\0" * 24), "'b' lies at byte 16, want 8"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_not_whole_is_said_in_one_line(said, content, words):
    assert words in said(content)


def test_the_largest_header_allowed_is_that_of_safetensors(said):
    assert "at most 100000000" in said(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}")


def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(tmp_path):
    """640 is 0x0280: the file then begins with the two bytes of a pickle."""
    header = {"__metadata__": {"a": ""}}
    header["__metadata__"]["a"] = " " * (640 - len(json.dumps(header)))
    path = tmp_path / "a"
    path.write_bytes(packed(header))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert read_header(path).tensors == {}


@pytest.mark.parametrize("name", ["gone.safetensors", "."])
def test_what_is_no_file_is_said(tmp_path, name):
    with pytest.raises(ConceptError, match=r"/.*: no such file; check the path"):
        read_header(tmp_path / name)


@given(st.data())
def test_no_corruption_gives_anything_but_a_concept_or_one_line(tmp_path_factory, data):
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 3))
        content[at : at + length] = data.draw(st.binary(max_size=4))
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
def test_no_header_of_any_json_gives_anything_but_a_header_or_one_line(tmp_path_factory, header, content):
    path = tmp_path_factory.mktemp("json") / "mine.safetensors"
    path.write_bytes(packed(header, content))
    try:
        read_header(path)
    except ConceptError as error:
        assert "\n" not in str(error)
