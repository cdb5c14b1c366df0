"""Metadata of other programs, in a file and beside it, is read if it is valid."""

import json

import pytest

from costars.concepts.metadata import (
    MAX_SIDECAR_BYTES,
    read_card_text,
    read_frequent_tags,
    read_licence,
    read_model_spec,
    read_sidecar,
    read_triggers,
)
from costars.errors import ConceptError


def test_tags_are_sorted_by_their_number_over_all_folders():
    tags = {"10_zxa woman": {" zxa": 12, "smiling ": 3}, "5_zxa": {"zxa": 4, "outdoors": 9}}
    assert read_frequent_tags({"ss_tag_frequency": json.dumps(tags)}) == ["zxa", "outdoors", "smiling"]
    assert read_frequent_tags({"ss_tag_frequency": json.dumps(tags)}, 1) == ["zxa"]


@pytest.mark.parametrize(
    "value", ["", "{", "[]", "3", '{"a": 3}', '{"a": {"b": "c"}}', "[" * 100_000, '{"a": {"": 3}}']
)
def test_damaged_tags_are_skipped(value):
    assert [tag for tag in read_frequent_tags({"ss_tag_frequency": value}) if tag != "b"] == []


def test_model_spec_has_single_lines_and_no_thumbnail():
    metadata = {"modelspec.title": "My\nzxa\x1b", "modelspec.thumbnail": "data:image/png", "ss_seed": "3"}
    assert read_model_spec(metadata | {"modelspec.license": "CC0-1.0 " * 500}) == {
        "title": "My zxa",
        "license": ("CC0-1.0 " * 500)[:500].strip(),
    }


@pytest.mark.parametrize(
    ("ending", "content", "expected"),
    [
        (
            ".civitai.info",
            {"trainedWords": ["zxa", "zxa woman"], "baseModel": "SDXL 1.0", "model": {"name": "Ana"}, "id": 3},
            {"triggers": ["zxa", "zxa woman"], "base_model": "SDXL 1.0", "model": "Ana"},
        ),
        (
            ".metadata.json",
            {"civitai": {"trainedWords": ["zxa"]}, "base_model": "Pony"},
            {"triggers": ["zxa"], "base_model": "Pony"},
        ),
        (
            ".json",
            {"activation text": "zxa, woman", "sd version": "SDXL", "license": "CC0", "notes": ""},
            {"triggers": "zxa, woman", "base_model": "SDXL", "licence": "CC0"},
        ),
        (
            ".json",
            {"trainedWords": ["not of this program"], "sd version": 3, "activation text": [4, "a\nb"]},
            {"triggers": ["a b"]},
        ),
    ],
)
def test_sidecar_is_read_by_the_keys_of_its_program(tmp_path, ending, content, expected):
    (tmp_path / f"mine.v1{ending}").write_text(json.dumps(content))
    assert read_sidecar(tmp_path / "mine.v1.safetensors") == {"file": f"mine.v1{ending}", **expected}


def test_missing_sidecar_is_empty(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    assert read_sidecar(tmp_path / "mine.safetensors") == {}


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00"])
def test_damaged_sidecar_is_rejected(tmp_path, text):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ConceptError, match=r"^mine.json is not a JSON object; fetch the file again$"):
        read_sidecar(tmp_path / "mine.safetensors")


def test_large_sidecar_is_rejected(tmp_path):
    with (tmp_path / "mine.json").open("wb") as file:
        file.truncate(MAX_SIDECAR_BYTES + 1)
    with pytest.raises(ConceptError, match=r"mine.json: is larger than 10000000 bytes"):
        read_sidecar(tmp_path / "mine.safetensors")


def test_triggers_of_metadata_and_sidecar_without_duplicates():
    assert read_triggers({"modelspec.trigger_phrase": "zxa, cat"}, {"triggers": ["zxa", "zxa cat , hat"]}) == [
        *("zxa", "zxa cat", "hat", "cat")
    ]
    assert read_triggers({}, {"triggers": "zxa"}) == ["zxa"]
    assert read_triggers({"modelspec.trigger_phrase": "\x1b[2J"}, {}) == []


def test_licence_of_metadata_precedes_that_of_the_sidecar():
    assert read_licence({"modelspec.license": "CC0"}, {"licence": "other"}) == "CC0"
    assert read_licence({}, {"licence": "other"}) == "other"
    assert read_licence({}, {}) == ""


@pytest.mark.parametrize("value", [3, "a\nb", "\x1b[2J", "a" * 501])
def test_unprintable_or_long_text_in_the_card_is_rejected(value):
    assert read_card_text({"trigger": "a" * 500}, "trigger", "mine.safetensors") == "a" * 500
    assert read_card_text({}, "trigger", "mine.safetensors") == ""
    with pytest.raises(ConceptError, match=r"^mine.safetensors: invalid trigger .* in its card, expected") as caught:
        read_card_text({"trigger": value}, "trigger", "mine.safetensors")
    assert "\n" not in str(caught.value)
