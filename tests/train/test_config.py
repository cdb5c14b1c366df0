"""Training configs: parsing, errors and paths."""

from pathlib import Path

import pytest

from costars.errors import TrainError
from costars.train.config import anchor_config, anchor_name, parse_config

MIA = {"name": "mia", "class": "woman", "images": "mia"}
REX = {"name": "rex", "class": "dog", "images": "rex"}


def test_single_concept_may_be_written_at_the_top_level():
    config = parse_config({"recipe": "lora", **MIA, "settings": {"steps": 5}})
    assert config == parse_config({"recipe": "lora", "concepts": [MIA], "settings": {"steps": 5}})
    assert config == parse_config(
        {"recipe": "lora", "name": "mia", "class_name": "woman", "images": "mia", "settings": {"steps": 5}}
    )
    assert (config.model, config.concepts[0].class_name, config.concepts[0].trigger) == ("builtin", "woman", None)
    assert parse_config({"recipe": "lora", "concepts": [MIA, REX]}).names == ("mia", "rex")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "training: expected a mapping, got list; want keys and values: recipe, name, class and images"),
        (
            {"recipe": "lora"},
            "training: name is missing; give --name ana (name: ana in a file); class is missing; give --class woman",
        ),
        ({"recipe": "lora", "concepts": [{"name": "a"}]}, "training: concepts.0: class is missing; give --class woman"),
        ({"name": "mia", "class": "woman"}, "training: recipe is missing; write one, such as recipe: lora"),
        ({"recipe": "lora", **MIA, "steps": 5}, "training: steps: unknown key; known: add_trigger, captioner"),
        ({"recipe": "lora", "concepts": [MIA | {"size": 1}]}, "training: concepts.0.size: unknown key; "),
        ({"recipe": "lora", "concepts": []}, "training: concepts: want at least 1 (got [])"),
        ({"recipe": "lora", **MIA, "name": "../mia"}, "training: name: '../mia': a name has letters of any language"),
        ({"recipe": "lora", **MIA, "name": "mia rose"}, "at most 64 characters; write mia_rose"),
        ({"recipe": "lora", **MIA, "name": 3}, "training: name: want text (got 3)"),
        ({"recipe": "lora", **MIA, "class": "a\nb"}, "training: class: 'a\\nb' has a line break"),
        ({"recipe": "lora", **MIA, "class": " "}, "training: class: ' ' is blank; write a word"),
        ({"recipe": "lora", **MIA, "trigger": "\x1b[2J"}, "training: trigger: '\\x1b[2J' has a line break or another"),
        ({"recipe": "lora", **MIA, "trigger": "(a:2)"}, "training: trigger: '(a:2)' has weights or BREAK, which"),
        ({"recipe": "lora", **MIA, "add_trigger": "maybe"}, "training: add_trigger: want true or false (got 'maybe')"),
        ({"recipe": "dreamboth", **MIA}, "unknown recipe 'dreamboth'; did you mean 'dreambooth'? known: "),
        ({"recipe": "lora", "concepts": [MIA, MIA]}, "duplicate concept name in ['mia', 'mia']; names must be unique"),
        (
            {"recipe": "dreambooth", "concepts": [MIA], "class_images": "a"},
            "class_images is set beside concepts; set it in each concept instead",
        ),
        ({"recipe": "lora", **MIA, "settings": {"steps": {"of": 1}}}, "training: settings.steps"),
        ({"recipe": "lora", **MIA, "settings": 3}, "training: settings: want keys and values (got 3)"),
    ],
)
def test_wrong_config_is_rejected_in_one_line(data, message):
    with pytest.raises(TrainError) as caught:
        parse_config(data)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_relative_paths_are_resolved_in_the_folder_of_the_file(tmp_path):
    for name in ("model", "blip", "vae"):
        (tmp_path / name).mkdir()
    config = parse_config(
        {
            "recipe": "lora",
            "concepts": [MIA | {"class_images": "~/women"}, REX | {"images": "/rex"}],
            "images": "both",
            "model": "model",
            "checkpoint": {"vae": "vae", "config": "org/name"},
            "captioner": "blip",
        },
        folder=tmp_path,
    )
    mia, rex = config.concepts
    assert (mia.images, mia.class_images, rex.images) == (str(tmp_path / "mia"), str(Path.home() / "women"), "/rex")
    assert (config.images, config.model) == (str(tmp_path / "both"), str(tmp_path / "model"))
    assert (config.checkpoint.vae, config.checkpoint.config) == (str(tmp_path / "vae"), "org/name")
    assert config.captioner == str(tmp_path / "blip")
    assert anchor_config(config, tmp_path / "elsewhere") == config


def test_names_without_a_file_are_kept(tmp_path):
    (tmp_path / "builtin").mkdir()
    assert anchor_name("org/name", tmp_path) == "org/name" and anchor_name(None, tmp_path) is None
    assert anchor_name("builtin", tmp_path) == "builtin"
