"""Draws men and women."""

from __future__ import annotations

import random

from costars_world.render.brush import INK, Brush, Colour
from costars_world.render.identity import Identity
from costars_world.render.palette import BLUSH, CLOTH, HAIR, SKIN, WHITE, contrast_colour


def draw_person(brush: Brush, identity: Identity, pose: random.Random) -> None:
    """Draw a man or a woman."""
    skin, hair, cloth = SKIN[identity["skin"]], HAIR[identity["hair_colour"]], CLOTH[identity["shirt_colour"]]
    woman = identity.class_name == "woman"
    _hair_behind(brush, identity["hair_style"], hair)
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
    _pattern(brush, identity["shirt_pattern"], cloth, (half_top, half_bottom, hem))
    for side, arm in zip((-1, 1), arms, strict=True):
        if arm == "wave":
            _arm(brush, side, arm, cloth, skin)
    _head(brush, identity, skin, hair)


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
    second = contrast_colour(cloth)

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


def _head(brush: Brush, identity: Identity, skin: Colour, hair: Colour) -> None:
    for side in (-1, 1):
        brush.ellipse(side * 16, -59, 3.2, 4, skin)
    brush.ellipse(0, -61, 16.5, 15.5, skin)
    beard = identity.attributes.get("beard", "none")
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
    _hair_front(brush, identity["hair_style"], hair, identity.class_name == "woman")
    _glasses(brush, identity["glasses"])
    _hat(brush, identity["hat"])


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
