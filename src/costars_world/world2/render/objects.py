"""Things: teddy, ball, backpack, vase and chair, each standing on the ground at the brush's origin."""

from __future__ import annotations

from costars_world.world2.render.brush import INK, Brush, Colour, Points, darker, mix, symmetric
from costars_world.world2.render.emblems import draw_badge, draw_emblem, draw_pattern
from costars_world.world2.render.head import draw_bow
from costars_world.world2.render.identity import Identity
from costars_world.world2.render.palette import FUR, GOLD, STEEL, WHITE, WOOD, WORD_COLOURS

_VASE: dict[str, Points] = {
    "round": symmetric((7, -40), (6, -34), (16, -24), (17, -12), (9, -1)),
    "tall": symmetric((9, -42), (7, -34), (11, -22), (11, -8), (8, -1)),
    "wide": symmetric((17, -34), (14, -26), (16, -14), (10, -1)),
}
_LEAF: Colour = (84, 176, 92)


def draw_teddy(brush: Brush, who: Identity) -> None:
    """A sitting teddy bear, 58 px high."""
    fur = FUR[who["fur"]]
    soft = mix(fur, WHITE, 0.6) if who["fur"] != "white" else (255, 224, 206)
    ear = 6.2 if who["ears"] == "small" else 10.0
    for side in (-1, 1):
        brush.ellipse(side * 16, -51, ear, ear, fur)
        brush.ellipse(side * 16, -51, ear * 0.55, ear * 0.55, soft, ink=False)
        brush.ellipse(side * 16, -21, 5.5, 8.5, fur)
    brush.ellipse(0, -16, 15, 15, fur)
    brush.ellipse(0, -14, 9.5, 10, soft, ink=False)
    if who["belly"] != "plain":
        draw_emblem(brush, who["belly"], 0, -14.5, 0.95)
    sole = soft if who["feet"] == "plain" else WORD_COLOURS[who["feet"]]
    for side in (-1, 1):
        brush.ellipse(side * 13.5, -6, 7.6, 7.2, fur)
        brush.ellipse(side * 13.5, -5.8, 4.8, 4.5, sole, ink=False)
    brush.ellipse(0, -42, 19, 15.5, fur)
    brush.ellipse(0, -36.5, 8.6, 6.6, soft, ink=False)
    for side in (-1, 1):
        brush.ellipse(side * 7.6, -44, 3, 3.6, INK, ink=False)
        brush.ellipse(side * 7.6 + 0.9, -45.2, 1.1, 1.2, WHITE, ink=False)
    brush.ellipse(0, -39.5, 3.6, 2.5, INK, ink=False)
    brush.arc(0, -37, 3.6, 3.4, 15, 165, 1.4, INK)
    if who["neckwear"] != "none":
        colour = WORD_COLOURS[who["neckwear"].split(maxsplit=1)[0]]
        if who["neckwear"].endswith("bow"):
            draw_bow(brush, 0, -26.5, 1.2, colour)
        else:
            brush.polygon(((4, -26), (11, -26), (12, -12), (5, -12)), darker(colour, 0.12))
            brush.box(-14, -30, 14, -23, 3.4, colour)


def draw_ball(brush: Brush, who: Identity) -> None:
    """A ball, 42 px high."""
    colour, second = WORD_COLOURS[who["colour"]], WORD_COLOURS[who["second"]]
    y, r = -21.0, 20.0
    brush.ellipse(0, y, r, r, colour)
    pattern = who["pattern"]
    if pattern == "striped":
        for top in (-12.5, 5.5):
            low, high = top, top + 6.5
            a, b = (r * r - low * low) ** 0.5 - 0.4, (r * r - high * high) ** 0.5 - 0.4
            brush.polygon(((-a, y + low), (a, y + low), (b, y + high), (-b, y + high)), second, ink=False)
    elif pattern == "panelled":
        for side in (-1, 1):
            brush.curve(
                ((side * 3, y - 18.4), (side * 8, y - 14), (side * 12.5, y), (side * 8, y + 14), (side * 3, y + 18.4)),
                second,
                False,
            )
        brush.curve(((0, y - 18.6), (5, y), (0, y + 18.6), (-5, y)), colour, ink=False)
    elif pattern == "dotted":
        for x, dy in ((0, -14), (-13, -8), (13, -8), (-14, 7), (14, 7), (0, 14), (-7, 0), (7, 0)):
            brush.ellipse(x, y + dy, 3, 3, second, ink=False)
    elif pattern == "ringed":
        brush.ellipse(0, y, 15.5, 15.5, second, ink=False)
        brush.ellipse(0, y, 11, 11, colour, ink=False)
    else:
        draw_pattern(brush, "checked", second, (-13.6, y - 13.6, 13.6, y + 13.6))
    brush.ellipse(-9, y - 12, 3.4, 2.2, mix(colour, WHITE, 0.6), ink=False)
    draw_badge(brush, who["emblem"], 0, y, 9.4)


def draw_backpack(brush: Brush, who: Identity) -> None:
    """A backpack, 52 px high."""
    colour, second = WORD_COLOURS[who["colour"]], WORD_COLOURS[who["second"]]
    brush.arc(0, -48, 7, 7.5, 180, 360, 3.2, INK)
    for side in (-1, 1):
        brush.box(side * 19 - 4, -24, side * 19 + 4, -5, 3, darker(colour, 0.25))
    if who["shape"] == "round":
        body: Points = ((-17, -4), (-18, -26), (-12, -45), (0, -49), (12, -45), (18, -26), (17, -4), (8, -1), (-8, -1))
        brush.curve(body, colour)
    else:
        brush.box(-17.5, -47, 17.5, -1, 4, colour)
    if who["pattern"] == "plain":
        brush.box(-15, -25, 15, -22.4, 1, second, ink=False)
    else:
        draw_pattern(
            brush, who["pattern"], second, (-13, -44, 13, -25) if who["pattern"] != "striped" else (-15, -42, 15, -24)
        )
    brush.box(-12.5, -21, 12.5, -3, 4, mix(colour, second, 0.75))
    draw_badge(brush, who["emblem"], 0, -21, 8.6)
    if who["emblem"] == "none":
        brush.box(-3, -22, 3, -16, 1, GOLD)


def draw_vase(brush: Brush, who: Identity) -> None:
    """A vase, 40 px high and up to 66 px with flowers."""
    colour, second = WORD_COLOURS[who["colour"]], WORD_COLOURS[who["second"]]
    _flowers(brush, who["flowers"])
    brush.curve(_VASE[who["shape"]], colour)
    half = {"round": 14.5, "tall": 10.0, "wide": 13.5}[who["shape"]]
    pattern = who["pattern"]
    if pattern == "plain":
        brush.box(-half * 0.55, -4.6, half * 0.55, -2, 1, second, ink=False)
    elif pattern == "striped":
        for top in (-23.0, -13.5):
            brush.box(-half, top, half, top + 5, 1.4, second, ink=False)
    else:
        draw_pattern(brush, pattern, second, (-half, -24, half, -7))
    neck = {"round": 8.0, "tall": 9.5, "wide": 17.5}[who["shape"]]
    top = {"round": -40.0, "tall": -42.0, "wide": -34.0}[who["shape"]]
    brush.box(-neck, top - 2, neck, top + 2.4, 2, mix(colour, second, 0.6))


def _flowers(brush: Brush, flowers: str) -> None:
    if flowers == "none":
        return
    for x, y in ((-11, -53), (11, -52), (0, -59)):
        brush.line([(x * 0.2, -34), (x, y)], 2.2, _LEAF)
        if flowers == "tulips":
            brush.curve(
                (
                    (x - 5.5, y - 6),
                    (x - 2, y - 3),
                    (x, y - 7),
                    (x + 2, y - 3),
                    (x + 5.5, y - 6),
                    (x + 4, y + 4),
                    (x - 4, y + 4),
                ),
                (244, 66, 74),
            )
        elif flowers == "sunflowers":
            brush.blob(
                [(x + dx, y + dy, 3.4, 3.4) for dx, dy in ((0, -5), (5, -1.5), (3, 4), (-3, 4), (-5, -1.5))], GOLD
            )
            brush.ellipse(x, y, 3.6, 3.6, (126, 78, 46), ink=False)
        else:
            brush.ellipse(x, y, 6, 5.6, (255, 132, 190))
            brush.arc(x, y, 3, 2.8, 200, 520, 1.4, (206, 60, 130))


def draw_chair(brush: Brush, who: Identity) -> None:
    """A chair seen from the front, 70 px high."""
    colour, second = WORD_COLOURS[who["colour"]], WORD_COLOURS[who["second"]]
    leg = WOOD if who["legs"] == "wooden" else STEEL
    for x in (-11, 11):
        brush.limb([(x, -24), (x, -8)], 4, darker(leg, 0.2))
    back = who["back"]
    if back == "round":
        brush.ellipse(0, -48, 19, 19, colour)
    elif back == "square":
        brush.box(-18, -68, 18, -30, 4, colour)
    elif back == "heart":
        points = ((0, -62), (9, -69), (19, -64), (20, -52), (0, -30), (-20, -52), (-19, -64), (-9, -69))
        brush.curve(points, colour)
    else:
        for x in (-15, -5, 5, 15):
            brush.limb([(x, -64), (x, -30)], 4.4, colour)
        brush.box(-19, -70, 19, -62, 3.4, colour)
    if who["pattern"] == "plain" and back != "slatted":
        brush.ellipse(0, -49, 5, 5, second, ink=False)
    elif back != "slatted":
        draw_pattern(brush, who["pattern"], second, (-12, -60, 12, -40))
    for x in (-17, 17):
        brush.limb([(x, -22), (x, -3)], 5.2, leg)
    brush.box(-21, -31, 21, -19, 5, mix(colour, second, 0.8) if who["pattern"] == "plain" else colour)
    if who["pattern"] != "plain":
        draw_pattern(brush, who["pattern"], second, (-17, -30, 17, -20))
