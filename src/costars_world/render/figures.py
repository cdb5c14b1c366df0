"""How an inhabitant looks: each class is one function that draws with a brush."""

from __future__ import annotations

import random

from costars_world.render.brush import INK, Brush, Colour
from costars_world.render.identity import Identity

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


def draw_figure(brush: Brush, who: Identity, pose: random.Random) -> None:
    """Draw one figure standing at the brush's origin; the pose draws from its own stream."""
    _DRAW[who.class_name](brush, who, pose)


def contrast(colour: Colour) -> Colour:
    """The second colour of a pattern: white on strong colours, soft dark on white ones."""
    return (96, 96, 150) if sum(colour) > 690 else WHITE


def _person(brush: Brush, who: Identity, pose: random.Random) -> None:
    skin, hair, cloth = SKIN[who["skin"]], HAIR[who["hair_colour"]], CLOTH[who["shirt_colour"]]
    woman = who.class_name == "woman"
    _hair_behind(brush, who["hair_style"], hair)
    trousers = skin if woman else (64, 78, 120)
    for side in (-1, 1):
        brush.limb([(side * 6, -22), (side * 6.5, -4)], 7.5, trousers)
        brush.ellipse(side * 7.5, -2.2, 6, 3.4, (92, 60, 48))
    arms = [pose.choice(("down", "down", "hip", "wave")) for _ in range(2)]
    if arms == ["wave", "wave"]:
        arms[0] = "down"
    for side, arm in zip((-1, 1), arms, strict=True):
        if arm != "wave":
            _arm(brush, side, arm, cloth, skin)
    half_top, half_bottom, hem = (8.5, 16, -15) if woman else (10.5, 12, -20)
    torso = [(-half_top, -46), (half_top, -46), (half_bottom, hem), (-half_bottom, hem)]
    brush.polygon(torso, cloth)
    _pattern(brush, who["shirt_pattern"], cloth, (half_top, half_bottom, hem))
    for side, arm in zip((-1, 1), arms, strict=True):
        if arm == "wave":
            _arm(brush, side, arm, cloth, skin)
    _head(brush, who, skin, hair)


def _arm(brush: Brush, side: int, arm: str, cloth: Colour, skin: Colour) -> None:
    elbow, hand = {
        "down": ((15, -34), (15.5, -26)),
        "hip": ((19, -35), (13, -27)),
        "wave": ((20, -40), (23, -52)),
    }[arm]
    shoulder = (side * 9.5, -43.5)
    brush.limb([shoulder, (side * elbow[0], elbow[1])], 6, cloth)
    brush.limb([(side * elbow[0], elbow[1]), (side * hand[0], hand[1])], 4.6, skin)


def _pattern(brush: Brush, pattern: str, cloth: Colour, torso: tuple[float, float, float]) -> None:
    half_top, half_bottom, hem = torso
    second = contrast(cloth)

    def half(y: float) -> float:
        return half_top + (half_bottom - half_top) * (y + 46) / (hem + 46) - 1.4

    if pattern == "striped":
        y = -40.0
        while y < hem - 2:
            brush.polygon([(-half(y), y), (half(y), y), (half(y + 3), y + 3), (-half(y + 3), y + 3)], second, ink=False)
            y += 6.6
    elif pattern == "dotted":
        for row, y in enumerate(range(-40, int(hem) - 2, 6)):
            for x in (-9, -3, 3, 9) if row % 2 else (-6, 0, 6):
                if abs(x) + 2.4 < half(y):
                    brush.ellipse(x, y, 1.8, 1.8, second, ink=False)
    elif pattern == "heart":
        red = WHITE if cloth == CLOTH["red"] else (232, 52, 84)
        for side in (-1, 1):
            brush.ellipse(side * 2.9, -35.5, 3.4, 3.2, red, ink=False)
        brush.polygon([(-6, -34.3), (6, -34.3), (0, -27.5)], red, ink=False)


def _hair_behind(brush: Brush, style: str, hair: Colour) -> None:
    if style == "long":
        brush.box(-18.5, -72, 18.5, -33, 11, hair)
    elif style == "bob":
        brush.box(-19, -72, 19, -47, 10, hair)
    elif style == "ponytail":
        brush.limb([(10, -74), (21, -66), (22, -48)], 7.5, hair)
    elif style == "bun":
        brush.ellipse(0, -81, 8, 7, hair)
    elif style == "curly":
        for x, y in ((-16, -58), (16, -58), (-17, -67), (17, -67), (-11, -75), (11, -75), (0, -78)):
            brush.ellipse(x, y, 7, 7, hair)


def _head(brush: Brush, who: Identity, skin: Colour, hair: Colour) -> None:
    for side in (-1, 1):
        brush.ellipse(side * 16, -59, 3.2, 4, skin)
    brush.ellipse(0, -61, 16.5, 15.5, skin)
    beard = who.attributes.get("beard", "none")
    if beard == "beard":
        brush.chord(0, -60.5, 16.5, 15.5, 12, 168, hair)
        brush.ellipse(0, -53.5, 5.5, 2.9, skin, ink=False)
    for side in (-1, 1):
        if beard != "beard":
            brush.ellipse(side * 10.5, -55, 3, 1.9, BLUSH, ink=False)
        brush.ellipse(side * 6.3, -60.5, 2.1, 3, INK, ink=False)
        brush.ellipse(side * 6.3 + 0.7, -61.7, 0.8, 1.0, WHITE, ink=False)
    brush.arc(0, -55, 4.2, 3.4, 20, 160)
    if beard == "moustache":
        for side in (-1, 1):
            brush.ellipse(side * 3.9, -55.2, 4.4, 2.1, hair, ink=False)
    _hair_front(brush, who["hair_style"], hair, who.class_name == "woman")
    _glasses(brush, who["glasses"])
    _hat(brush, who["hat"])


def _hair_front(brush: Brush, style: str, hair: Colour, woman: bool) -> None:
    if style == "bald":
        brush.ellipse(-5, -71, 3.4, 1.7, WHITE, ink=False)
        return
    if style == "spiky":
        spikes = [(-17, -65), (-19, -78), (-11, -74), (-8, -85), (-1, -77), (5, -86)]
        brush.polygon([*spikes, (9, -76), (18, -80), (17, -65), (8, -69), (-2, -67), (-9, -70)], hair)
        return
    brush.chord(0, -61.5, 17.5, 16.8, 197, 343, hair)
    if style == "curly":
        for x, y in ((-12, -70), (-4, -72), (4, -72), (12, -70)):
            brush.ellipse(x, y, 5, 4.5, hair, ink=False)
    if woman and style in ("long", "bob"):
        for side in (-1, 1):
            brush.limb([(side * 15, -68), (side * 16.8, -57)], 3.6, hair)


def _glasses(brush: Brush, glasses: str) -> None:
    if glasses == "none":
        return
    for side in (-1, 1):
        cx, cy, r = side * 6.6, -60.5, 5.2
        if glasses == "sunglasses":
            brush.box(cx - 5.6, cy - 4, cx + 5.6, cy + 4, 3, (38, 36, 46))
            brush.line([(cx - 2.6, cy - 1.4), (cx - 0.4, cy - 2.4)], 1.2, WHITE)
        else:
            for wider in (0.0, 0.45, 0.9):
                brush.arc(cx, cy, r + wider, r + wider, 0, 360, (60, 40, 120))
        brush.line([(side * 12, -61), (side * 16, -62)], 1.4)
    brush.line([(-1.6, -61), (1.6, -61)], 1.6)


def _hat(brush: Brush, hat: str) -> None:
    if hat == "red cap":
        brush.chord(0, -66, 17.5, 16, 180, 360, (222, 52, 56))
        brush.box(-3, -69, 22, -65, 2, (176, 36, 46))
    elif hat == "blue beanie":
        brush.ellipse(0, -85, 4.2, 4.2, WHITE)
        brush.chord(0, -67, 18, 17, 180, 360, (66, 112, 206))
        brush.box(-18.5, -71, 18.5, -65.5, 2.6, (150, 190, 244))
    elif hat == "straw hat":
        brush.ellipse(0, -70, 25, 5.2, (240, 204, 120))
        brush.chord(0, -71, 13.5, 15, 180, 360, (248, 218, 140))
        brush.box(-13.5, -74.5, 13.5, -71, 1, (206, 74, 70))


def _animal(brush: Brush, who: Identity, pose: random.Random) -> None:
    fur, dog = FUR[who["fur"]], who.class_name == "dog"
    dark: Colour = (max(0, fur[0] - 70), max(0, fur[1] - 64), max(0, fur[2] - 52))
    patch = (226, 214, 204) if who["fur"] == "black" else dark
    wag = pose.uniform(-4, 4)
    if dog:
        brush.limb([(11, -8), (20, -16 + wag), (23, -26 + wag)], 6, fur)
    else:
        brush.limb([(10, -6), (21, -8), (24, -22 + wag), (20, -32 + wag)], 4.6, fur)
    brush.ellipse(0, -14, 14.5, 13.5, fur)
    brush.ellipse(0, -12, 7.5, 9.5, _mix(fur, WHITE, 0.55), ink=False)
    if who["marking"] == "spotted":
        for x, y in ((-10, -17), (9.5, -20), (10, -10)):
            brush.ellipse(x, y, 2.8, 2.6, patch, ink=False)
    if who["marking"] == "striped":
        for side in (-1, 1):
            for y in (-20, -14, -8):
                brush.line([(side * 13, y), (side * 8, y + 1)], 2.2, patch)
    for side in (-1, 1):
        brush.limb([(side * 5, -12), (side * 5.5, -3)], 5.5, fur)
        brush.ellipse(side * 6, -2.2, 5, 3, fur)
    _animal_head(brush, who, fur, patch, dog)
    if who["collar"] != "none":
        brush.box(-9.5, -25.5, 9.5, -21.8, 1.8, CLOTH[who["collar"]])
        brush.ellipse(0, -20.6, 2.4, 2.4, (252, 214, 80))


def _animal_head(brush: Brush, who: Identity, fur: Colour, patch: Colour, dog: bool) -> None:
    pointed = not dog or who["ears"] == "pointed"
    if pointed:
        for side in (-1, 1):
            brush.polygon([(side * 15, -40), (side * 13.5, -56), (side * 3, -47)], fur)
            brush.polygon([(side * 12.4, -44), (side * 11.8, -51), (side * 6.5, -47)], BLUSH, ink=False)
    brush.ellipse(0, -36, 16, 13.2, fur)
    if who["marking"] == "patched":
        brush.ellipse(-6.4, -38, 5.8, 6, patch, ink=False)
    if who["marking"] == "striped":
        for x in (-5, 0, 5):
            brush.line([(x, -48), (x, -44)], 2.2, patch)
    if who["marking"] == "spotted":
        brush.ellipse(9, -44, 3, 2.5, patch, ink=False)
    if not pointed:
        for side in (-1, 1):
            brush.ellipse(side * 16, -36, 4.8, 9.5, _mix(fur, INK, 0.25))
    eye = WHITE if who["fur"] == "black" and not dog else INK
    for side in (-1, 1):
        if eye == WHITE:
            brush.ellipse(side * 6.4, -38, 3, 3.2, (214, 226, 96), ink=False)
        brush.ellipse(side * 6.4, -38, 2.0, 2.7, INK, ink=False)
        brush.ellipse(side * 6.4 + 0.7, -39.1, 0.8, 0.9, WHITE, ink=False)
    if dog:
        brush.ellipse(0, -31, 7.4, 5.6, _mix(fur, WHITE, 0.6), ink=False)
        brush.ellipse(0, -34, 3.4, 2.4, INK, ink=False)
        brush.chord(0, -29.4, 2.6, 4.2, 0, 180, (240, 100, 116))
    else:
        brush.ellipse(0, -32, 5, 3.4, _mix(fur, WHITE, 0.6), ink=False)
        brush.polygon([(-2, -34.5), (2, -34.5), (0, -32)], (240, 110, 130), ink=False)
        for side in (-1, 1):
            brush.line([(side * 7, -33), (side * 19, -35)], 0.8)
            brush.line([(side * 7, -31.5), (side * 19, -30)], 0.8)


def _robot(brush: Brush, who: Identity, pose: random.Random) -> None:
    metal = METAL[who["body"]]
    dark = _mix(metal, INK, 0.35)
    for side in (-1, 1):
        brush.limb([(side * 7, -20), (side * 7, -5)], 5, (132, 138, 150))
        brush.box(side * 8 - 6.5, -6, side * 8 + 6.5, 0, 2.4, dark)
        lift = pose.choice((0, 0, -14))
        brush.limb([(side * 14, -38), (side * 21, -31 + lift), (side * 20, -23 + 2 * lift)], 4.4, (132, 138, 150))
        brush.ellipse(side * 20, -22 + 2 * lift, 4, 4, dark)
    brush.box(-14.5, -43, 14.5, -17, 4, metal)
    _chest(brush, who["chest"])
    brush.box(-4, -47, 4, -42, 1, (132, 138, 150))
    for x in {"one": (0,), "two": (-8, 8), "none": ()}[who["antenna"]]:
        brush.line([(x, -70), (x, -80)], 1.8)
        brush.ellipse(x, -82, 3, 3, (250, 90, 84))
    if who["head"] == "square":
        brush.box(-16.5, -73, 16.5, -46, 4, metal)
    elif who["head"] == "round":
        brush.ellipse(0, -59.5, 17, 14, metal)
    else:
        brush.chord(0, -52, 17, 22, 180, 360, metal)
        brush.box(-17, -54, 17, -46, 2.5, metal)
    if who["eyes"] == "visor":
        brush.box(-12.5, -64.5, 12.5, -56.5, 4, (40, 44, 66))
        for side in (-1, 1):
            brush.ellipse(side * 5.4, -60.5, 2.2, 2.2, (96, 240, 232), ink=False)
    else:
        for side in (-1, 1):
            brush.ellipse(side * 6.8, -60.5, 5, 5, WHITE)
            brush.ellipse(side * 6.8, -60, 2.2, 2.4, INK, ink=False)
    brush.box(-6, -52.5, 6, -49.5, 1.2, (70, 70, 88), ink=False)


def _chest(brush: Brush, chest: str) -> None:
    if chest == "light":
        brush.ellipse(0, -31, 5.4, 5.4, (255, 236, 120))
    elif chest == "heart":
        for side in (-1, 1):
            brush.ellipse(side * 3.2, -33, 3.8, 3.6, (240, 40, 80), ink=False)
        brush.polygon([(-6.6, -31.6), (6.6, -31.6), (0, -24)], (240, 40, 80), ink=False)
    else:
        brush.box(-9, -38, 9, -25, 2, (40, 60, 80))
        brush.line([(-6, -30), (-2, -34), (2, -29), (6, -33)], 1.6, (110, 250, 160))


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    """A colour this share of the way from a to b."""
    r, g, bl = (int(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, bl


_DRAW = {"man": _person, "woman": _person, "dog": _animal, "cat": _animal, "robot": _robot}
