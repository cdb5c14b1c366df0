"""The colours that attribute words stand for."""

from __future__ import annotations

from collections.abc import Mapping

from costars_world.world2.render.brush import Colour

WHITE: Colour = (255, 255, 255)
BLUSH: Colour = (248, 150, 146)
GOLD: Colour = (255, 206, 64)
STEEL: Colour = (146, 152, 166)
WOOD: Colour = (176, 120, 74)

SKIN: Mapping[str, Colour] = {
    "pale": (255, 232, 214),
    "light": (252, 208, 168),
    "tan": (230, 170, 116),
    "brown": (188, 124, 80),
    "dark": (142, 90, 62),
}
HAIR: Mapping[str, Colour] = {
    "black": (62, 54, 74),
    "brown": (136, 82, 44),
    "blond": (252, 212, 92),
    "red": (230, 88, 36),
    "white": (238, 238, 244),
    "blue": (64, 124, 232),
    "pink": (250, 130, 186),
}
FUR: Mapping[str, Colour] = {
    "brown": (150, 98, 60),
    "golden": (240, 184, 92),
    "black": (74, 70, 84),
    "white": (248, 246, 242),
    "grey": (158, 162, 176),
    "red": (206, 96, 48),
    "orange": (250, 156, 66),
    "cream": (252, 230, 190),
    "honey": (222, 166, 92),
    "pink": (250, 170, 200),
    "blue": (128, 176, 240),
}
WORD_COLOURS: Mapping[str, Colour] = {
    "red": (232, 62, 64),
    "blue": (54, 110, 224),
    "green": (64, 176, 88),
    "yellow": (255, 212, 62),
    "purple": (152, 88, 206),
    "orange": (252, 146, 46),
    "pink": (250, 138, 188),
    "teal": (46, 184, 180),
    "white": (248, 248, 246),
    "black": (66, 62, 76),
    "cream": (252, 234, 198),
    "mint": (166, 236, 198),
    "navy": (44, 56, 116),
    "silver": (196, 204, 216),
    "gold": GOLD,
}
