"""Contact sheets: layout, coloured masks and picture side by side, and tiles in a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from costars.types import Picture, Plan, Region

COLOURS = (
    *((255, 92, 92), (64, 156, 255), (255, 196, 64), (96, 208, 128), (190, 120, 255)),
    *((255, 140, 30), (0, 190, 190), (240, 90, 200), (150, 105, 60), (110, 120, 135)),
)
TILE_PX = 256
GAP_PX = 10
SWATCH_PX = 14  # side of a colour in the legend
LEGEND_PX = 24  # height of a line of the legend
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
    draw, font = ImageDraw.Draw(grid), _load_font()
    for i, title in enumerate(titles):
        draw.text((GAP_PX + i * step_x + TILE_PX / 2, 5), title, TEXT_COLOUR, font, anchor="ma")
    for j, row in enumerate(rows):
        for i, tile in enumerate(row):
            grid.paste(_fit_tile(tile), (GAP_PX + i * step_x, top + j * step_y))
        if captions:
            draw.text((GAP_PX, top + j * step_y + TILE_PX + 4), captions[j], TEXT_COLOUR, font)
    return grid


def make_contact_sheet(picture: Picture) -> Image.Image:
    """Layout, masks and picture of a result, with a legend; only the picture if its method has no layout."""
    if picture.plan is None:
        return make_grid([[picture.image]], ["picture"])
    return _make_sheet(picture.plan, [picture.image], ["picture"])


def make_plan_sheet(plan: Plan) -> Image.Image:
    """Layout and masks of a plan, with a legend."""
    return _make_sheet(plan, [], [])


def _make_sheet(plan: Plan, images: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    row = [plan.layout.image, overlay_masks(plan.layout.image, plan.regions), *images]
    return add_legend(make_grid([row], ["layout", "who is where", *titles]), plan.regions)


def add_legend(sheet: Image.Image, regions: Mapping[str, Region]) -> Image.Image:
    """Add lines below a sheet with the colour, name, class and depth of each member, as overlay_masks draws them."""
    font = _load_font()
    entries = [
        (COLOURS[i % len(COLOURS)], f"{name} ({region.class_name}){' in front' if region.depth == 0 else ''}")
        for i, (name, region) in enumerate(regions.items())
    ]
    places, x, y = [], GAP_PX, 0
    for _, text in entries:
        width = SWATCH_PX + 6 + round(font.getlength(text)) + 2 * GAP_PX
        if x > GAP_PX and x + width > sheet.width:
            x, y = GAP_PX, y + LEGEND_PX
        places.append((x, y))
        x += width
    out = Image.new("RGB", (sheet.width, sheet.height + y + LEGEND_PX), BACKGROUND)
    out.paste(sheet)
    draw = ImageDraw.Draw(out)
    for (colour, text), (left, row) in zip(entries, places, strict=True):
        top = sheet.height + row
        draw.rectangle((left, top, left + SWATCH_PX, top + SWATCH_PX), colour)
        draw.text((left + SWATCH_PX + 6, top + SWATCH_PX / 2), text, TEXT_COLOUR, font, anchor="lm")
    return out


def _load_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=14)


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
