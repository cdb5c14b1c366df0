"""How files beside training images are named by other programs, and that whatever is not read is named."""

import json
import os

import pytest
from PIL import Image

from costars.errors import TrainError
from costars.train.data.folder import IGNORED, OTHER_IMAGES, list_images
from costars.train.data.images import read_image_folder


@pytest.fixture
def folder(tmp_path):
    """Write empty files into a folder."""

    def write(*names: str):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        return tmp_path

    return write


def listed(folder, *concepts):
    listing = list_images(folder, concepts)
    found = {}
    for image in listing.images:
        masks = {concept: str(path.relative_to(folder)) for concept, path in image.masks.items()}
        found[image.name] = (image.caption, masks)
    return found, listing.unread


def error_of(folder, *concepts) -> str:
    with pytest.raises(TrainError) as caught:
        list_images(folder, concepts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "a.TXT", "a.Caption"])
def test_captions_of_kohya_and_onetrainer_in_any_case(folder, name):
    (folder("a.PNG", "b.Jpg", "c.BMP") / name).write_text("a woman")
    assert listed(folder()) == ({"a.PNG": ("a woman", {}), "b.Jpg": (None, {}), "c.BMP": (None, {})}, ())


MASKS = ["a.mask.png", "a.mask.jpg", "a.MASK.PNG", "a-masklabel.png", "a_mask.png", "a_mask.webp", "masks/a.png"]


@pytest.mark.parametrize("mask", [*MASKS, "mask/a.bmp", "Masks/a.png"])
def test_masks_of_other_programs_are_masks_and_no_second_image(folder, mask):
    assert listed(folder("a.jpg", mask)) == ({"a.jpg": (None, {"": mask})}, ())


def test_a_picture_of_a_mask_is_a_picture(folder):
    assert listed(folder("carnival_mask.png")) == ({"carnival_mask.png": (None, {})}, ())


def test_masks_that_name_a_concept(folder):
    files = folder("a.png", "a.rex.mask.png", "a.rex-masklabel.png", "masks/b.josé.png", "b.png")
    assert error_of(files, "rex") == "a.png: has the masks a.rex.mask.png, a.rex-masklabel.png; keep one"
    (files / "a.rex-masklabel.png").unlink()
    found, unread = listed(files, "rex", "josé")
    assert found == {"a.png": (None, {"rex": "a.rex.mask.png"}), "b.png": (None, {"josé": "masks/b.josé.png"})}
    unused = "not read: 'a.rex.mask.png', 'masks/b.josé.png': no image has this name"
    assert unread == () and listed(files)[1] == (unused,)


def test_everything_that_is_not_read_is_named_with_its_reason(folder):
    files = folder("a.png", "a.npz", "b.txt", "c.mask.png", "d.gif", "e.HEIC", "10_ana woman/f.png", "old/g.png")
    (files / "metadata.csv").write_text("file_name,text")
    _, unread = listed(files)
    assert set(unread) == {
        "not read: 'a.npz', 'metadata.csv': neither an image, a caption nor a mask",
        "not read: 'b.txt', 'c.mask.png': no image has this name",
        "not read: 'd.gif', 'e.HEIC': an image format that is not supported; convert it to PNG or JPEG",
        "not read: '10_ana woman': a folder named as kohya's repeats; give it with --images (its number has no effect)",
        "not read: 'old': a folder within the folder",
    }


def test_a_condition_of_onetrainer_is_no_second_image(folder):
    reason = "OneTrainer's condition of an image, which no recipe reads"
    assert listed(folder("a.png", "a-condlabel.png")) == (
        {"a.png": (None, {})},
        (f"not read: 'a-condlabel.png': {reason}",),
    )


def test_only_files_of_systems_are_passed_over_in_silence(folder):
    assert listed(folder("a.png", ".DS_Store", ".a.txt", "Thumbs.db", *IGNORED))[1] == ()
    lines = "".join(listed(folder(*(f"b{suffix}" for suffix in OTHER_IMAGES), "thumbs.db2"))[1])
    assert all(f"'{name}'" in lines for name in (*(f"b{suffix}" for suffix in OTHER_IMAGES), "thumbs.db2"))


def test_many_files_are_one_line(folder):
    (line,) = listed(folder("a.png", *(f"{i:03}.npz" for i in range(50))))[1]
    assert line.startswith("not read: '000.npz', ") and "'019.npz' and 30 more: neither an image" in line


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.png", "a.jpg", "a.txt"), "a.jpg and a.png share a.txt; rename one of them with its files"),
        (("a.png", "a.jpg", "a.mask.png"), "a.jpg and a.png share a.mask.png; rename one"),
        (("a.png", "a.txt", "a.caption"), "a.png: has the captions a.caption, a.txt; keep one"),
        (("a.png", "a.mask.png", "a-masklabel.png"), "a.png: has the masks a.mask.png, a-masklabel.png; keep one"),
    ],
)
def test_what_belongs_to_two_images_or_is_there_twice_is_refused(folder, names, message):
    assert error_of(folder(*names)).startswith(message)


def test_two_images_of_one_name_without_other_files_are_two_images(folder):
    assert list(listed(folder("a.png", "a.jpg"))[0]) == ["a.jpg", "a.png"]


def test_a_caption_that_is_no_file_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder("a.png") / "a.txt")
    assert error_of(folder()) == "'a.txt': is a named pipe, not a file; give a regular file"


def test_metadata_of_kohya_has_captions_and_tags(folder):
    files = folder("a.png", "b.jpg", "c.png", "sub.png")
    (files / "c.txt").write_text("from beside")
    entries = {
        "/data/train/a": {"tags": "1girl, red hat", "train_resolution": [512, 512]},
        "C:\\data\\b.jpg": {"caption": "a woman", "tags": "smile"},
        "c": {"train_resolution": [64, 64]},
    }
    (files / "meta_cap.json").write_text("{}")
    (files / "meta_lat.json").write_text(json.dumps(entries))
    found, unread = listed(files)
    expected = {"a.png": "1girl, red hat", "b.jpg": "a woman, smile", "c.png": "from beside"}
    assert found == {name: (caption, {}) for name, caption in expected.items()}
    assert unread == (
        "not read: 'meta_cap.json': neither an image, a caption nor a mask",
        "not read: 'sub.png': not listed in meta_lat.json",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "meta_lat.json: contains list; want {"),
        ("{", "meta_lat.json: not valid JSON: Expecting property name"),
        ("[" * 100_000, "meta_lat.json: not valid JSON: nested more than 50 deep"),
        ('{"b": {}}', "meta_lat.json: 'b': no such image in the folder; remove the entry"),
        ('{"a": 3}', "meta_lat.json: 'a': '3' is no object"),
        ('{"a": {"tags": 3}}', "meta_lat.json: 'a': tags is 3; must be a string"),
    ],
)
def test_damaged_metadata_of_kohya_is_refused(folder, text, message):
    (folder("a.png") / "meta_lat.json").write_text(text)
    assert error_of(folder()).startswith(message)


def test_an_animation_is_skipped_by_name(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.bmp")
    read = read_image_folder(tmp_path)
    assert [e.name for e in read.examples] == ["b.bmp"]
    assert read.skipped == ("'a.webp': is an animation; save one frame as PNG; skipped",)
