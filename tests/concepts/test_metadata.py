"""What others wrote into a file and beside it: read where it is sound, never trusted."""

import json

import pytest

from costars.concepts.metadata import (
    MAX_SIDECAR_BYTES,
    frequent_tags,
    model_spec,
    read_sidecar,
    stated_licence,
    stated_triggers,
)
from costars.errors import ConceptError


def test_the_tags_of_most_pictures_come_first_over_all_folders():
    tags = {"10_zxa woman": {" zxa": 12, "smiling ": 3}, "5_zxa": {"zxa": 4, "outdoors": 9}}
    assert frequent_tags({"ss_tag_frequency": json.dumps(tags)}) == ["zxa", "outdoors", "smiling"]
    assert frequent_tags({"ss_tag_frequency": json.dumps(tags)}, 1) == ["zxa"]


@pytest.mark.parametrize(
    "value", ["", "{", "[]", "3", '{"a": 3}', '{"a": {"b": "c"}}', "[" * 100_000, '{"a": {"": 3}}']
)
def test_tags_that_are_damaged_are_no_tags(value):
    assert [tag for tag in frequent_tags({"ss_tag_frequency": value}) if tag != "b"] == []


def test_the_model_spec_is_shown_without_its_picture_and_in_one_line():
    metadata = {"modelspec.title": "My\nzxa\x1b", "modelspec.thumbnail": "data:image/png", "ss_seed": "3"}
    assert model_spec(metadata | {"modelspec.license": "CC0-1.0 " * 500}) == {
        "title": "My zxa",
        "license": ("CC0-1.0 " * 500)[:500].strip(),
    }


@pytest.mark.parametrize(
    ("ending", "said", "expected"),
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
def test_a_file_beside_it_is_read_by_the_keys_of_its_program(tmp_path, ending, said, expected):
    (tmp_path / f"mine.v1{ending}").write_text(json.dumps(said))
    assert read_sidecar(tmp_path / "mine.v1.safetensors") == {"file": f"mine.v1{ending}", **expected}


def test_with_no_file_beside_it_nothing_is_said(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    assert read_sidecar(tmp_path / "mine.safetensors") == {}


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00"])
def test_a_damaged_file_beside_it_is_named(tmp_path, text):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ConceptError, match=r"mine.json: it is not a JSON object"):
        read_sidecar(tmp_path / "mine.safetensors")


def test_one_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "mine.json").open("wb") as file:
        file.truncate(MAX_SIDECAR_BYTES + 1)
    with pytest.raises(ConceptError, match=r"mine.json: has over 10000000 bytes; move it away"):
        read_sidecar(tmp_path / "mine.safetensors")


def test_triggers_are_those_of_every_author_each_once():
    assert stated_triggers({"modelspec.trigger_phrase": "zxa, cat"}, {"triggers": ["zxa", "zxa cat , hat"]}) == [
        *("zxa", "zxa cat", "hat", "cat")
    ]
    assert stated_triggers({}, {"triggers": "zxa"}) == ["zxa"]
    assert stated_triggers({"modelspec.trigger_phrase": "\x1b[2J"}, {}) == []


def test_the_licence_is_the_files_own_and_else_that_beside_it():
    assert stated_licence({"modelspec.license": "CC0"}, {"licence": "other"}) == "CC0"
    assert stated_licence({}, {"licence": "other"}) == "other"
    assert stated_licence({}, {}) == ""
