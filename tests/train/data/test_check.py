"""Folders of training images are checked before the model is loaded."""

import pytest
from PIL import Image

from costars.errors import TrainError
from costars.studio import open_studio
from costars.train.config import parse_config
from costars.train.data.check import check_image_folders


def config(tmp_path, **changes):
    concepts = [{"name": "ana", "class": "woman", "images": "a"}, {"name": "bo", "class": "man", "images": "b"}]
    return parse_config({"recipe": "custom-diffusion", "concepts": concepts, "model": "gone"} | changes, "x", tmp_path)


def test_all_folders_that_are_missing_or_empty_are_named_at_once(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(
        TrainError, match=r"ana: images '/.*/a': folder not found; .*; bo: images '/.*/b': no usable image"
    ):
        check_image_folders(config(tmp_path))
    for name in "ab":
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    check_image_folders(config(tmp_path))


def test_folder_is_checked_before_the_model(tmp_path, library):
    with pytest.raises(TrainError, match="folder not found"):
        open_studio("cpu", library=library).prepare_training(config(tmp_path))


def test_empty_folder_is_found_before_the_model(tmp_path, library):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tif").touch()
    with pytest.raises(TrainError, match=r"^ana: .*no usable image .*'0.tif': an image format .*; bo: images"):
        open_studio("cpu", library=library).prepare_training(config(tmp_path))
