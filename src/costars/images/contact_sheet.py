"""Contact sheets: layout, coloured masks and picture side by side, and tiles in a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from costars.types import Picture, Region

COLOURS = ((255, 92, 92), (64, 156, 255), (255, 196, 64), (96, 208, 128), (190, 120, 255))
TILE_PX = 256
GAP_PX = 10
BACKGROUND = (252, 250, 246)
TEXT_COLOUR = (52, 44, 60)


def overlay_masks(image: Image.Image, regions: Mapping[str, Region]) -> Image.Image:
    """Draw each region in its own colour over the image in light grey; the front region is on top."""
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    out = 0.55 * grey + 0.45 * 255
    for i, region in sorted(enumerate(regions.values()), key=lambda item: -item[1].depth):
        colour = np.array(COLOURS[i % len(COLOURS)], dtype=np.float32)
        opacity = 0.68 * region.mask[..., None]
        out = out * (1 - opacity) + colour * opacity
    return Image.fromarray(out.round().astype(np.uint8))


def make_grid(
    rows: Sequence[Sequence[Image.Image]], titles: Sequence[str] = (), captions: Sequence[str] = ()
) -> Image.Image:
    """Arrange tiles in rows, with a title above each column and a caption below each row."""
    columns = max(len(row) for row in rows)
    top = 26 if titles else GAP_PX
    caption_px = 24 if captions else 0
    step_x, step_y = TILE_PX + GAP_PX, TILE_PX + GAP_PX + caption_px
    grid = Image.new("RGB", (columns * step_x + GAP_PX, top + len(rows) * step_y), BACKGROUND)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=14)
    for i, title in enumerate(titles):
        draw.text((GAP_PX + i * step_x + TILE_PX / 2, 5), title, TEXT_COLOUR, font, anchor="ma")
    for j, row in enumerate(rows):
        for i, tile in enumerate(row):
            grid.paste(_fit_tile(tile), (GAP_PX + i * step_x, top + j * step_y))
        if captions:
            draw.text((GAP_PX, top + j * step_y + TILE_PX + 4), captions[j], TEXT_COLOUR, font)
    return grid


def make_contact_sheet(picture: Picture) -> Image.Image:
    """Layout, masks and picture of a result; only the picture if its method has no layout."""
    if picture.plan is None:
        return make_grid([[picture.image]], ["picture"])
    layout = picture.plan.layout.image
    row = [layout, overlay_masks(layout, picture.plan.regions), picture.image]
    return make_grid([row], ["layout", "who is where", "picture"])


def _fit_tile(image: Image.Image) -> Image.Image:
    """Scale an image to fit a tile, centred on the background colour."""
    scale = TILE_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    scaled = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    if size == (TILE_PX, TILE_PX):
        return scaled
    tile = Image.new("RGB", (TILE_PX, TILE_PX), BACKGROUND)
    tile.paste(scaled, ((TILE_PX - size[0]) // 2, (TILE_PX - size[1]) // 2))
    return tile
