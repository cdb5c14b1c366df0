"""Pictures are decoded completely, or refused in one line."""

import io
import struct
import warnings
import zlib

import pytest
from PIL import Image

from costars.errors import ReadError
from costars.files.pictures import load_picture


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width=4, height=4, depth=8, colour=0, data=None, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"\0" * (width + 1) * height) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_picture_is_decoded_with_its_metadata(tmp_path):
    (tmp_path / "a.png").write_bytes(png(4, 4, 8, 0, None, chunk(b"tEXt", b"costars\0{}")))
    image = load_picture(tmp_path / "a.png")
    assert (image.size, image.info["costars"]) == ((4, 4), "{}")
    (tmp_path / "a.png").unlink()
    assert image.getpixel((0, 0)) == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a picture in PNG, JPEG, WEBP, BMP, GIF, TIFF format; save it as PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture in PNG"),  # Pillow would run gs
        (png()[:-30], "picture"),
        (png(data=b"no zlib"), "a damaged picture ("),
        (png(data=zlib.compress(b"\0")), "a damaged picture ("),
        (png(depth=3), "picture"),
        (png(60_000, 60_000, data=b""), "more than 89478485 pixels; scale it down"),
        (png(10_000, 10_000, data=b""), "more than 89478485 pixels"),
        (png(4, 4, 8, 0, None, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 10**8))), "picture ("),
        (png(4, 4, 8, 0, None, chunk(b"iTXt", b"a")), "picture"),
        (png(4, 4, 8, 3), "picture"),
        (png(0, 4), "picture"),
    ],
)
def test_damaged_and_huge_pictures_are_refused_in_one_line(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    try:
        image = load_picture(tmp_path / "a.png")
    except ReadError as error:
        assert reason in str(error) and str(error).startswith(f"{tmp_path}/a.png: ") and "\n" not in str(error)
    else:
        assert reason == "picture" and image.size == (4, 4)  # Pillow reads around it


def test_only_the_wanted_formats_are_read(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (2, 2)).save(data, "GIF")
    (tmp_path / "a.png").write_bytes(data.getvalue())
    assert load_picture(tmp_path / "a.png").size == (2, 2)
    with warnings.catch_warnings(action="error"), pytest.raises(ReadError, match="not a picture in PNG format"):
        load_picture(tmp_path / "a.png", ("PNG",))
