"""Pictures of pictures: layout, masks in colour and result side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from costars.types import Picture, Region

COLOURS = ((255, 92, 92), (64, 156, 255), (255, 196, 64), (96, 208, 128), (190, 120, 255))
TILE_PX = 256
GAP_PX = 10
PAPER = (252, 250, 246)
INK = (52, 44, 60)


def masks_in_colour(image: Image.Image, regions: Mapping[str, Region]) -> Image.Image:
    """The picture in grey with each region in a colour of its own, the front one on top."""
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    out = 0.55 * grey + 0.45 * 255
    for i, region in sorted(enumerate(regions.values()), key=lambda each: -each[1].depth):
        colour = np.array(COLOURS[i % len(COLOURS)], dtype=np.float32)
        share = 0.68 * region.mask[..., None]
        out = out * (1 - share) + colour * share
    return Image.fromarray(out.round().astype(np.uint8))


def grid(
    rows: Sequence[Sequence[Image.Image]], titles: Sequence[str] = (), captions: Sequence[str] = ()
) -> Image.Image:
    """Tiles in rows, with a title over each column and a caption under each row."""
    columns = max(len(row) for row in rows)
    top = 26 if titles else GAP_PX
    foot = 24 if captions else 0
    step_x, step_y = TILE_PX + GAP_PX, TILE_PX + GAP_PX + foot
    sheet_image = Image.new("RGB", (columns * step_x + GAP_PX, top + len(rows) * step_y), PAPER)
    pen, font = ImageDraw.Draw(sheet_image), ImageFont.load_default(size=14)
    for i, title in enumerate(titles):
        pen.text((GAP_PX + i * step_x + TILE_PX / 2, 5), title, INK, font, anchor="ma")
    for j, row in enumerate(rows):
        for i, tile in enumerate(row):
            sheet_image.paste(_fitted(tile), (GAP_PX + i * step_x, top + j * step_y))
        if captions:
            pen.text((GAP_PX, top + j * step_y + TILE_PX + 4), captions[j], INK, font)
    return sheet_image


def sheet(picture: Picture) -> Image.Image:
    """Layout, masks and picture of one result; the picture alone where there was no layout."""
    if picture.plan is None:
        return grid([[picture.image]], ["picture"])
    layout = picture.plan.layout.image
    row = [layout, masks_in_colour(layout, picture.plan.regions), picture.image]
    return grid([row], ["layout", "who is where", "picture"])


def _fitted(tile: Image.Image) -> Image.Image:
    share = TILE_PX / max(tile.size)
    size = (max(1, round(tile.width * share)), max(1, round(tile.height * share)))
    scaled = tile.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    if size == (TILE_PX, TILE_PX):
        return scaled
    square = Image.new("RGB", (TILE_PX, TILE_PX), PAPER)
    square.paste(scaled, ((TILE_PX - size[0]) // 2, (TILE_PX - size[1]) // 2))
    return square
