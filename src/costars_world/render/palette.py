"""Colours of the built-in world's figures."""

from __future__ import annotations

from costars_world.render.brush import Colour

SKIN: dict[str, Colour] = {
    "pale": (255, 230, 214),
    "light": (250, 205, 170),
    "tan": (226, 168, 120),
    "brown": (166, 108, 70),
    "dark": (104, 66, 46),
}
HAIR: dict[str, Colour] = {
    "black": (48, 42, 54),
    "brown": (118, 72, 40),
    "blond": (248, 208, 92),
    "red": (214, 84, 34),
    "white": (236, 236, 240),
    "blue": (66, 122, 224),
    "pink": (246, 128, 180),
}
CLOTH: dict[str, Colour] = {
    "red": (224, 58, 62),
    "blue": (52, 104, 214),
    "green": (62, 166, 84),
    "yellow": (252, 208, 62),
    "purple": (146, 84, 196),
    "orange": (250, 142, 48),
    "white": (246, 246, 244),
    "black": (58, 54, 66),
}
FUR: dict[str, Colour] = {
    "brown": (134, 88, 54),
    "golden": (232, 178, 92),
    "black": (62, 58, 68),
    "white": (246, 242, 236),
    "grey": (150, 152, 164),
    "orange": (244, 148, 62),
    "cream": (250, 226, 186),
}
METAL: dict[str, Colour] = {
    "silver": (188, 198, 208),
    "red": (222, 78, 72),
    "blue": (82, 130, 220),
    "teal": (58, 186, 178),
    "yellow": (248, 204, 76),
    "pink": (244, 144, 186),
}
WHITE: Colour = (252, 252, 252)
BLUSH: Colour = (246, 146, 140)


def contrast_colour(colour: Colour) -> Colour:
    """The second colour of a pattern: white, or a soft dark blue on light colours."""
    return (96, 96, 150) if sum(colour) > 690 else WHITE


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Interpolate linearly from a (share 0) to b (share 1)."""
    red, green, blue = (int(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue
