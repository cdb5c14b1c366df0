"""Loading the subjects of a training config."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from costars.errors import TrainError
from costars.train.config import TrainConfig, parse_config
from costars.train.data.dataset import load_dataset
from costars.train.recipe import Recipe
from costars.train.recipes import RECIPES

MIA = {"name": "mia", "class": "woman", "images": "mia"}
PAIR = {"concepts": [{"name": "ana", "class": "woman"}, {"name": "rex", "class": "dog"}], "images": "both"}


def draw(path: Path, mode: str = "RGB", colour: object = "red") -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, (8, 8), colour).save(path)


def config_of(folder: Path, recipe: str = "lora", **values) -> tuple[TrainConfig, Recipe]:
    return parse_config({"recipe": recipe, **values}, folder=folder), RECIPES[recipe]["sdxl"]


def error_of(config: TrainConfig, recipe: Recipe) -> str:
    with pytest.raises(TrainError) as caught:
        load_dataset(config, recipe)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def captions(tmp_path):
    """Load two images, the first of them with a caption; returns the trigger and both captions."""
    draw(tmp_path / "mia" / "a.png")
    draw(tmp_path / "mia" / "b.png")
    (tmp_path / "mia" / "a.txt").write_text("a woman in a park")

    def of(describe=None, recipe="lora", **values):
        (subject,) = load_dataset(*config_of(tmp_path, recipe, **MIA | values), describe).subjects
        return subject.trigger, [example.caption for example in subject.examples]

    return of


def test_missing_captions_are_the_trigger_and_the_class(captions):
    assert captions() == ("mia", ["a woman in a park", "a mia woman"])


def test_describe_captions_images_without_a_caption(captions):
    assert captions(lambda image: "a woman at sea")[1] == ["a woman in a park", "a mia woman at sea"]


def test_add_trigger_inserts_the_trigger_into_captions(captions):
    assert captions(add_trigger=True)[1] == ["a mia woman in a park", "a mia woman"]
    assert captions(trigger="zxa", add_trigger=True) == ("zxa", ["a zxa woman in a park", "a zxa woman"])
    expected = ["a <mia1> <mia2> woman in a park", "a <mia1> <mia2> woman"]
    assert captions(recipe="ed-lora", add_trigger=True) == ("<mia1> <mia2>", expected)


def test_a_trigger_is_written_as_in_a_prompt_and_captions_are_plain_text(tmp_path, captions):
    (tmp_path / "mia" / "a.txt").write_text(r"a saber \(fate\) woman, [smile]")
    trigger, texts = captions(trigger=r"saber \(fate\)", add_trigger=True)
    assert trigger == r"saber \(fate\)"
    assert texts == ["a saber (fate) woman, [smile]", "a saber (fate) woman"]


def test_trigger_is_rejected_if_the_recipe_trains_new_words(captions):
    with pytest.raises(TrainError, match="mia: trigger 'zxa' is not used, ed-lora trains new words; remove it"):
        captions(recipe="ed-lora", trigger="zxa")


def test_missing_images_are_rejected(tmp_path):
    assert "mia: no images; give --images FOLDER" in error_of(*config_of(tmp_path, name="mia", **{"class": "woman"}))
    assert f"images '{tmp_path / 'mia'}': folder not found" in error_of(*config_of(tmp_path, **MIA))


def test_class_images_are_read_with_default_captions(tmp_path):
    for name in ("mia/a.png", "women/a.png", "women/b.png"):
        draw(tmp_path / name)
    (tmp_path / "women" / "a.txt").write_text("an old woman in a park")
    (tmp_path / "women" / "torn.png").write_bytes(b"")
    found = load_dataset(*config_of(tmp_path, class_images="women", **MIA))
    (subject,) = found.subjects
    assert [example.caption for example in subject.class_examples] == ["an old woman in a park", "a woman"]
    assert [example.caption for example in subject.examples] == ["a mia woman"]
    assert len(found.skipped) == 1 and found.skipped[0].startswith("'torn.png': ")


@pytest.mark.parametrize(
    ("folder", "message"),
    [("nowhere", "folder not found; give a folder"), ("empty", "no usable image in the folder")],
)
def test_unusable_class_images_are_rejected(tmp_path, folder, message):
    draw(tmp_path / "mia" / "a.png")
    (tmp_path / "empty").mkdir()
    config = config_of(tmp_path, class_images=folder, **MIA)
    assert f"images '{tmp_path / folder}': {message}" in error_of(*config)


def test_em_captions_select_the_concepts_of_an_image(tmp_path):
    draw(tmp_path / "both" / "a.png")
    draw(tmp_path / "both" / "b.png")
    draw(tmp_path / "both" / "a.rex.mask.png", "L", 255)
    (tmp_path / "both" / "b.txt").write_text("{ana}")
    ana, rex = load_dataset(*config_of(tmp_path, "em", **PAIR)).subjects
    assert [[example.name for example in subject.examples] for subject in (ana, rex)] == [["a.png", "b.png"], ["a.png"]]
    assert ana.examples[0].mask is None and np.array_equal(rex.examples[0].mask, np.ones((8, 8)))


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a woman", "must name the concepts in the image, of ana, rex; write {ana}"),
        ("{bo}", "the caption '{bo}' must name"),
        ("{ana}", "rex: no caption contains {rex}; add it"),
    ],
)
def test_invalid_em_captions_are_rejected(tmp_path, caption, message):
    draw(tmp_path / "both" / "a.png")
    (tmp_path / "both" / "a.txt").write_text(caption)
    assert message in error_of(*config_of(tmp_path, "em", **PAIR))
