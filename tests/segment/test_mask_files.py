"""Mask files are white on black in any grey mode, or one colour on transparent; anything else is rejected."""

import numpy as np
import pytest
from PIL import Image

from costars.errors import SceneError
from costars.scene.scene import CastMember
from costars.segment.mask_files import check_mask_files, describe_masks, has_mask_file, load_mask

SIZE = (64, 64)


def member(path) -> CastMember:
    return CastMember(concept="x", where=str(path))


@pytest.mark.parametrize(("where", "expected"), [("a.png", True), ("left", False), ((0.5, 0.5), False), (None, False)])
def test_mask_file_is_told_from_other_places(where, expected):
    assert has_mask_file(CastMember(concept="x", where=where)) == expected


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "I;16"])
def test_mask_is_read_in_every_grey_mode(tmp_path, mode):
    levels = np.zeros((64, 64), np.uint16)
    levels[:, :32] = 40_000
    grey = Image.fromarray(levels if mode == "I;16" else np.where(levels, 255, 0).astype(np.uint8))
    (grey if mode == "I;16" else grey.convert(mode)).save(tmp_path / "ana.png")
    mask = load_mask(member(tmp_path / "ana.png"), SIZE)
    assert mask.dtype == np.float32 and mask[:, :32].all() and not mask[:, 32:].any()


def test_mask_is_resized_to_the_picture(tmp_path):
    Image.new("L", (32, 32), 255).save(tmp_path / "small.png")
    assert load_mask(member(tmp_path / "small.png"), SIZE).shape == (64, 64)


def test_mask_with_colours_is_rejected(tmp_path):
    image = Image.new("RGBA", SIZE, "white")
    image.paste((255, 0, 0, 255), (0, 0, 32, 64))
    image.save(tmp_path / "ana.png")
    with pytest.raises(SceneError, match=r"where: '.*ana.png' has colours; use white on black, or one colour on"):
        load_mask(member(tmp_path / "ana.png"), SIZE)


def test_figure_painted_on_an_empty_layer_is_the_mask_and_is_told(tmp_path):
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    image.paste((10, 10, 10, 255), (0, 0, 32, 64))
    image.save(tmp_path / "ana.png")
    mask = load_mask(member(tmp_path / "ana.png"), SIZE)
    assert mask[:, :32].all() and not mask[:, 32:].any()
    Image.new("L", SIZE, 255).save(tmp_path / "bo.png")
    cast = {"ana": member(tmp_path / "ana.png"), "bo": member(tmp_path / "bo.png")}
    (note,) = describe_masks(cast)
    assert note.startswith("cast.ana.where: ") and "so its alpha channel is the mask" in note


def test_mask_of_another_aspect_ratio_is_rejected(tmp_path):
    Image.new("L", (300, 100), 255).save(tmp_path / "wide.png")
    with pytest.raises(SceneError, match=r"wide\.png' is 300 x 100 px, the picture 64 x 64 px; use a mask with"):
        check_mask_files({"ana": member(tmp_path / "wide.png")}, SIZE)


def test_missing_or_unreadable_mask_is_rejected(tmp_path):
    with pytest.raises(SceneError, match=r"where: '.*gone.png' is not left, .* or a mask file \(.*gone.png: not found"):
        check_mask_files({"ana": member(tmp_path / "gone.png")}, SIZE)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(SceneError, match=r"text.png: not a picture in PNG"):
        check_mask_files({"ana": member(tmp_path / "text.png")}, SIZE)


def test_members_without_a_mask_file_are_not_checked():
    check_mask_files({"ana": CastMember(concept="x", where="left"), "bo": CastMember(concept="x")}, SIZE)
