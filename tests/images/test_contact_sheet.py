"""Contact sheets show layout, masks and picture side by side."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from costars.images.contact_sheet import GAP_PX, TILE_PX, make_contact_sheet, make_grid, overlay_masks
from costars.types import Layout, Picture, Plan


@pytest.fixture
def plan(make_scene, make_region) -> Plan:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    layout = Layout(image, torch.zeros(11, 4, 8, 8), {}, "a man and a woman", 20)
    regions = {
        "a": make_region("man", (0, 0, 0.5, 1), 0.9, 1),
        "b": make_region("woman", (0.5, 0.25, 1, 1), 0.8, 0),
    }
    return Plan(make_scene(), layout, regions, {})


@pytest.fixture
def picture(plan) -> Picture:
    return Picture(Image.new("RGB", (64, 64), "teal"), plan.scene, plan, {}, {}, {}, {})


def test_sheet_shows_layout_masks_and_picture(picture):
    sheet = make_contact_sheet(picture)
    assert sheet.width > 3 * 256 > sheet.height
    assert sheet.getpixel((2 * 266 + 138, 26 + 128)) == (0, 128, 128)


def test_sheet_without_a_plan_shows_only_the_picture(picture):
    sheet = make_contact_sheet(replace(picture, plan=None))
    assert sheet.width == TILE_PX + 2 * GAP_PX and sheet.getpixel((138, 26 + 128)) == (0, 128, 128)


def test_masks_have_their_own_colours(plan):
    coloured = np.asarray(overlay_masks(Image.new("RGB", (64, 64), "white"), plan.regions)).astype(int)
    assert coloured[32, 10, 0] - coloured[32, 10, 2] > 60 and coloured[32, 50, 2] - coloured[32, 50, 0] > 60
    assert (coloured[4, 50] == 255).all()


def test_front_mask_is_drawn_over_the_others(plan):
    image = plan.layout.image
    a, b = plan.regions.values()
    both = replace(b, mask=np.ones_like(b.mask), depth=1), replace(a, mask=np.ones_like(a.mask), depth=0)
    shown = np.asarray(overlay_masks(image, dict(zip("ba", both, strict=True))))
    front_only = np.asarray(overlay_masks(image, {"b": both[0], "a": both[1]}))
    assert np.array_equal(shown, front_only)
    other = np.asarray(overlay_masks(image, {"b": replace(both[0], depth=0), "a": replace(both[1], depth=1)}))
    assert not np.array_equal(shown, other)


def test_tiles_keep_their_aspect_ratio():
    grid = make_grid([[Image.new("RGB", (20, 10), "red")] * 2, []], captions=["first", "second"])
    assert grid.size == (2 * (TILE_PX + GAP_PX) + GAP_PX, GAP_PX + 2 * (TILE_PX + GAP_PX + 24))
    tile = np.asarray(grid)[GAP_PX : GAP_PX + TILE_PX, GAP_PX : GAP_PX + TILE_PX]
    red = (tile == (255, 0, 0)).all(-1)
    assert red[64:192].all() and not red[:64].any() and not red[192:].any()
