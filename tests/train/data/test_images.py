"""Reading a folder of training images: which images, captions and masks are found, skipped or rejected."""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from costars.errors import TrainError
from costars.train.data.images import ImageFolder, read_image_folder

RED, WHITE = (255, 0, 0), (255, 255, 255)
SIDEWAYS = 6  # EXIF orientation: rotated by 90 degrees


def draw(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB", colour: object = None, **options) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size, "red" if colour is None else colour).save(path, **options)
    return path


def draw_mask(path: Path, size: tuple[int, int] = (6, 4), level: int = 255) -> Path:
    return draw(path, size, "L", level)


def write_metadata(folder: Path, *lines: object, name: str = "metadata.jsonl") -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / name).write_text("\n".join(texts), encoding="utf-8")


def names(material: ImageFolder) -> list[str]:
    return [example.name for example in material.examples]


def error_of(folder: Path) -> str:
    with pytest.raises(TrainError) as caught:
        read_image_folder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def huge_png() -> bytes:
    """A tiny file whose header says 60000 x 60000 px."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_images_are_sorted_by_name_with_their_captions_and_masks(tmp_path):
    for name in ("c.webp", "B.JPG", "a.png", "d.jpeg"):
        draw(tmp_path / name)
    draw(tmp_path / ".hidden.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf \n  a woman, caf\xc3\xa9 \r\nmore\n")
    (tmp_path / "c.txt").write_text(" \n\n")
    draw_mask(tmp_path / "d.mask.png", level=51)
    found = read_image_folder(tmp_path)
    assert names(found) == ["B.JPG", "a.png", "c.webp", "d.jpeg"] and not found.skipped
    assert [example.caption for example in found.examples] == [None, "a woman, café", None, None]
    assert [example.mask is not None for example in found.examples] == [False, False, False, True]
    mask = found.examples[-1].mask
    assert mask.shape == (4, 6) and mask.dtype == np.float32 and np.allclose(mask, 0.2)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("LA", (0, 0), WHITE),
        ("P", "red", RED),
        ("L", 128, (128,) * 3),
        ("1", 1, WHITE),
        ("I;16", 32896, (128,) * 3),
    ],
)
def test_every_mode_becomes_rgb_on_white(tmp_path, mode, colour, expected):
    draw(tmp_path / "a.png", mode=mode, colour=colour)
    image = read_image_folder(tmp_path).examples[0].image
    assert image.mode == "RGB" and image.getpixel((1, 1)) == expected


def test_exif_orientation_is_applied_and_the_mask_has_the_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = SIDEWAYS
    draw(tmp_path / "a.jpg", (6, 4), exif=exif)
    draw_mask(tmp_path / "a.mask.png", (4, 6))
    example = read_image_folder(tmp_path).examples[0]
    assert example.image.size == (4, 6) and example.mask.shape == (6, 4)
    draw_mask(tmp_path / "a.mask.png", (6, 4))
    assert "size 6 x 4 px; expected greyscale, 4 x 6 px" in error_of(tmp_path)


def test_unreadable_images_are_skipped_and_named(tmp_path):
    draw(tmp_path / "a.png", (40, 40))
    whole = draw(tmp_path / "whole.jpg", (40, 40)).read_bytes()
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.png").write_text("no image")
    (tmp_path / "d.png").write_bytes(huge_png())
    (tmp_path / "e.png").write_bytes(b"")
    (tmp_path / "f.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "g.png").mkdir()
    os.mkfifo(tmp_path / "h.png")
    found = read_image_folder(tmp_path)
    assert names(found) == ["a.png", "whole.jpg"]
    assert [line.split(":")[0] for line in found.skipped] == [f"'{n}'" for n in "b.jpg c.png d.png e.png".split()] + [
        f"'{n}.png'" for n in "fgh"
    ]
    assert "scale it down" in found.skipped[2] and "not a picture in PNG, JPEG, WEBP, BMP format" in found.skipped[1]
    assert not any("\n" in line for line in found.skipped)


def test_image_above_pil_limit_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr("costars.files.pictures.MAX_PIXELS", 20)
    draw(tmp_path / "a.png", (6, 4))
    draw(tmp_path / "b.png", (4, 4))
    found = read_image_folder(tmp_path)
    assert names(found) == ["b.png"] and "more than 20 pixels" in found.skipped[0]


def test_symlinked_image_is_read(tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.png").symlink_to(draw(tmp_path / "elsewhere.png"))
    assert names(read_image_folder(tmp_path / "links")) == ["a.png"]


def test_missing_and_empty_folders_are_rejected(tmp_path):
    assert "folder not found" in error_of(tmp_path / "nowhere")
    assert "folder not found" in error_of(draw(tmp_path / "a" / "a.png"))
    (tmp_path / "empty").mkdir()
    assert "no usable image in the folder (expected .png" in error_of(tmp_path / "empty")
    (tmp_path / "empty" / "a.png").write_text("no image")
    assert "1 unreadable, first 'a.png'" in error_of(tmp_path / "empty")


@pytest.mark.parametrize(
    ("write_mask", "message"),
    [
        (lambda path: draw_mask(path, (5, 4)), "size 5 x 4 px"),
        (lambda path: path.write_text("no mask"), "not a picture in PNG"),
        (draw, "has colours"),
        (lambda path: draw(path, mode="LA", colour=(255, 254)), "alpha channel"),
        (lambda path: draw_mask(path, level=0), "all black"),
    ],
)
def test_invalid_mask_is_rejected(tmp_path, write_mask, message):
    draw(tmp_path / "a.png")
    write_mask(tmp_path / "a.mask.png")
    error = error_of(tmp_path)
    assert message in error and "'a.mask.png' of 'a.png'" in error and "expected greyscale, 6 x 4 px" in error


@pytest.mark.parametrize(
    ("mode", "level"),
    [("1", 1), ("L", 255), ("RGB", WHITE), ("I;16", 65535), ("LA", (255, 255)), ("RGBA", (*WHITE, 255))],
)
def test_white_mask_is_one_in_every_mode(tmp_path, mode, level):
    draw(tmp_path / "a.png")
    draw(tmp_path / "a.mask.png", mode=mode, colour=level)
    assert (read_image_folder(tmp_path).examples[0].mask == 1).all()


def test_caption_that_is_not_utf8_is_rejected(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    assert "'a.txt': is not UTF-8 text" in error_of(tmp_path)


def test_jsonl_lists_images_captions_and_masks_in_order(tmp_path):
    for name in ("a.png", "b.png", "c.png", "left out.png", "sub/d.png"):
        draw(tmp_path / name)
    draw_mask(tmp_path / "m.png", level=51)
    draw_mask(tmp_path / "a.mask.png")
    (tmp_path / "a.txt").write_text("from beside")
    write_metadata(
        tmp_path,
        {"file_name": "sub/../c.png", "text": "a line\u2028of two", "mask": "m.png"},
        "",
        {"file": "a.png", "caption": None, "other": 1},
        {"file_name": "sub/d.png", "caption": " own "},
    )
    read = read_image_folder(tmp_path)
    found = read.examples
    assert read.skipped == ("not read: 'b.png', 'left out.png': not listed in metadata.jsonl",)
    assert [example.name for example in found] == ["c.png", "a.png", "sub/d.png"]
    assert [example.caption for example in found] == ["a line", "from beside", "own"]
    assert [example.mask is not None and round(float(example.mask[0, 0]), 1) for example in found] == [0.2, 1.0, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[" * 100_000, "line 2: not valid JSON"),
        ('["a.png"]', "is not an object"),
        ({"text": "a woman"}, "no file_name"),
        ({"file_name": ["a.png"]}, "file_name is ['a.png']; must be a string"),
        ({"file_name": "a.png", "text": 0}, "text is 0; must be a string"),
        ({"file_name": "a.png", "caption": 3}, "caption is 3"),
        ({"file_name": "../a.png"}, "is outside the folder"),
        ({"file_name": "/etc/hosts"}, "is outside the folder"),
        ({"file_name": "a.png", "mask": "sub/../../m.png"}, "is outside the folder"),
        ({"file_name": "a.png", "mask": "m.png"}, "file 'm.png' not found"),
        ({"file_name": "a.mask.png"}, "is a mask file"),
        ({"file_name": "nul\0.png"}, "not found in the folder"),
        ({"file_name": "x" * 300 + ".png"}, "not found in the folder"),
        (
            {"file_name": "a.png", "prompt": "a woman"},
            "'prompt' is not read as a caption; rename it to text or caption",
        ),
    ],
)
def test_invalid_jsonl_line_is_rejected(tmp_path, line, message):
    draw(tmp_path / "a.png")
    draw_mask(tmp_path / "a.mask.png")
    write_metadata(tmp_path, {"file_name": "a.png"}, line)
    error = error_of(tmp_path)
    assert error.startswith("metadata.jsonl line 2: ") and message in error


def test_two_jsonl_files_are_rejected(tmp_path):
    draw(tmp_path / "a.png")
    for name in ("a.jsonl", "b.jsonl"):
        write_metadata(tmp_path, {"file_name": "a.png"}, name=name)
    assert "found 2 .jsonl files, a.jsonl, b.jsonl; keep one" in error_of(tmp_path)


def test_unreadable_folder_is_rejected(tmp_path, monkeypatch):
    def refused(_):
        raise PermissionError("denied")

    monkeypatch.setattr(os, "listdir", refused)
    assert "denied" in error_of(tmp_path)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_skipped(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("bytes")
    draw(folder / "a.png")
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert names(read_image_folder(folder)) == ["a.png"]
