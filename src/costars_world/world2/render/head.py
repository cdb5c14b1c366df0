"""A person's head: face, hair, beard, glasses and hat. The head's centre is the brush's origin."""

from __future__ import annotations

from costars_world.world2.render.brush import INK, Brush, Colour, Point, Points, darker, mix
from costars_world.world2.render.identity import Identity
from costars_world.world2.render.palette import BLUSH, HAIR, SKIN, WHITE
from costars_world.world2.render.skeleton import Pose

RX, RY = 20.5, 18.5  # radii of the head, px at scale 1
EYE = (8.2, 1.5)  # of an eye: distance from the middle, and below the head's centre
_MOUTH: Colour = (150, 34, 50)


def draw_hair_behind(brush: Brush, style: str, hair: Colour, woman: bool) -> None:
    """The hair that the head and the body hide in part."""
    if style == "long" and woman:
        brush.curve(
            ((-23, -8), (-16, -22), (0, -25), (16, -22), (23, -8), (26, 14), (25, 34), (-25, 34), (-26, 14)), hair
        )
    elif style == "long":
        brush.curve(
            ((-23, -6), (-16, -21), (0, -24), (16, -21), (23, -6), (26, 10), (24, 22), (-24, 22), (-26, 10)), hair
        )
    elif style == "bob":
        brush.curve(
            ((-24, -6), (-17, -21), (0, -25), (17, -21), (24, -6), (29, 12), (20, 16), (-20, 16), (-29, 12)), hair
        )
    elif style == "buns":
        brush.blob(((-25, -3, 8.5, 8.5), (25, -3, 8.5, 8.5)), hair)
    elif style == "ponytail":
        brush.curve(((14, -18), (26, -20), (34, -6), (35, 12), (30, 24), (27, 8), (22, -2)), hair)
    elif style == "pigtails":
        for side in (-1, 1):
            brush.curve(((side * 20, -2), (side * 29, -2), (side * 34, 12), (side * 30, 28), (side * 25, 16)), hair)
            brush.ellipse(side * 22.5, 0, 3.2, 3.2, (250, 92, 120))
    elif style == "curly":
        ring = ((-22, 4), (22, 4), (-24, -5), (24, -5), (-20, -14), (20, -14), (-11, -21), (11, -21), (0, -23))
        low = ((-23, 12), (23, 12)) if woman else ()
        brush.blob([(x, y, 7.5, 7.5) for x, y in (*ring, *low)], hair)


def draw_head(brush: Brush, who: Identity, pose: Pose) -> None:
    """The head in front of the body; hair behind it is drawn apart."""
    skin, hair = SKIN[who["skin"]], HAIR[who["hair_colour"]]
    style, beard = who["hair_style"], who.attributes.get("beard", "none")
    brush.blob(((-RX - 0.5, 2.5, 4, 4.8), (RX + 0.5, 2.5, 4, 4.8)), skin)
    brush.ellipse(0, 0, RX, RY, skin)
    if beard == "beard":
        _beard(brush, hair)
    else:
        for side in (-1, 1):
            brush.ellipse(side * 13.2, 9, 3.6, 2.4, mix(skin, BLUSH, 0.6), ink=False)
    draw_eyes(brush, who["glasses"], pose.look)
    for side in (-1, 1):
        brush.line([(side * 5.2, -7.4), (side * 11.6, -7)], 2.0, darker(hair, 0.45))
    brush.ellipse(0, 6, 2.2, 1.6, darker(skin, 0.3), ink=False)
    draw_mouth(brush, 11.0, pose.happy)
    if beard == "moustache":
        brush.blob(((-4.6, 8.9, 5, 2.3), (4.6, 8.9, 5, 2.3)), hair)
    _hair_front(brush, style, hair, who.class_name == "woman")
    _hat(brush, who["hat"])


def draw_eyes(brush: Brush, glasses: str, look: float) -> None:
    """White eyes with dark pupils; glasses enlarge the white to their lenses."""
    ex, ey = EYE
    frame: Colour = (40, 70, 196) if glasses == "round glasses" else (214, 36, 58)
    for side in (-1, 1):
        x = side * ex
        if glasses == "none":
            brush.ellipse(x, ey, 5, 5.8, INK, ink=False)
            brush.ellipse(x, ey, 4.3, 5.1, WHITE, ink=False)
        elif glasses == "round glasses":
            brush.ellipse(x, ey, 8, 8, frame, ink=False)
            brush.ellipse(x, ey, 6.1, 6.1, WHITE, ink=False)
        else:
            brush.box(x - 7.8, ey - 6.6, x + 7.8, ey + 6.6, 2, frame, ink=False)
            brush.box(x - 6, ey - 4.8, x + 6, ey + 4.8, 1, WHITE, ink=False)
        px = x + look * 1.3 - side * 0.4
        brush.ellipse(px, ey + 0.3, 2.9, 3.9, INK, ink=False)
        brush.ellipse(px + 0.9, ey - 1.2, 1.1, 1.3, WHITE, ink=False)
    if glasses != "none":
        for side in (-1, 1):
            brush.line([(side * 15.5, ey - 1), (side * 20, ey - 2)], 1.8, frame)


def draw_mouth(brush: Brush, y: float, happy: bool) -> None:
    """A smile, or an open mouth."""
    if happy:
        points: tuple[Point, ...] = (
            (-5, y - 1.2),
            (0, y - 0.6),
            (5, y - 1.2),
            (3.6, y + 3.2),
            (0, y + 4.6),
            (-3.6, y + 3.2),
        )
        brush.curve(points, INK, ink=False)
        brush.ellipse(0, y + 1.8, 3.4, 2.2, _MOUTH, ink=False)
        brush.ellipse(0, y + 2.9, 2.2, 1.2, (246, 120, 130), ink=False)
    else:
        brush.arc(0, y - 2.2, 5, 4, 15, 165, 1.5, INK)


def _beard(brush: Brush, hair: Colour) -> None:
    outer = ((-20.5, 0), (-20, 10), (-12, 20), (0, 23), (12, 20), (20, 10), (20.5, 0))
    inner = ((16, 3), (12, 7), (0, 6.5), (-12, 7), (-16, 3))
    brush.curve((*outer, *inner), hair)
    brush.ellipse(0, 11.5, 6.4, 4, mix(hair, WHITE, 0.85), ink=False)


def _hair_front(brush: Brush, style: str, hair: Colour, woman: bool) -> None:
    shine = mix(hair, WHITE, 0.35)
    if style == "bald":
        brush.ellipse(-8, -13, 4.6, 2.2, WHITE, ink=False)
        return
    if style == "spiky":
        left: Points = ((-19, -3), (-29, -9), (-22, -13), (-25, -23), (-14, -19), (-10, -29), (-3, -21))
        right: Points = (
            (5, -30),
            (9, -20),
            (20, -25),
            (20, -14),
            (29, -11),
            (19, -3),
            (14, -10),
            (6, -7),
            (0, -11),
            (-7, -7),
            (-13, -10),
        )
        brush.polygon((*left, *right), hair)
    elif style == "parted":
        top: Points = ((-21, -1), (-23, -12), (-16, -22), (0, -25), (17, -22), (24, -10), (21, 1), (17, -8))
        brush.curve((*top, (4, -9), (-8, -14), (-12, -16), (-15, -8)), hair)
    elif style == "curly":
        dots = ((-17, -10), (-9, -14), (0, -15), (9, -14), (17, -10), (-12, -19), (0, -21), (12, -19))
        brush.blob([(x, y, 5.8, 5.4) for x, y in dots], hair)
    elif style in ("long", "bob") and woman:
        top = ((-22.0, 5.0), (-23, -10), (-15, -22), (0, -25), (15, -22), (23, -10), (22, 5), (18, -3))
        brush.curve((*top, (11, -10), (0, -16), (-11, -10), (-18, -3)), hair)
    else:
        top = ((-21.5, -1), (-22, -12), (-14, -22), (0, -24.5), (14, -22), (22, -12), (21.5, -1), (17, -8))
        brush.curve((*top, (7, -10.5), (-5, -9.5), (-17, -8)), hair)
    brush.line([(-11, -18.5), (-5, -20.8)], 2.2, shine)


def _hat(brush: Brush, hat: str) -> None:
    if hat == "red cap":
        brush.curve(((-21, -13), (-19, -27), (-8, -34), (8, -34), (19, -27), (21, -13), (0, -15)), (234, 52, 58))
        brush.curve(((-4, -16), (16, -18), (33, -11), (30, -8), (12, -11), (-4, -12)), (178, 30, 44))
        brush.ellipse(-2, -25, 5, 4.4, WHITE, ink=False)
    elif hat == "blue beanie":
        brush.ellipse(0, -36, 5.2, 5.2, WHITE)
        brush.curve(((-21, -13), (-19, -26), (-8, -33), (8, -33), (19, -26), (21, -13), (0, -14)), (58, 116, 226))
        brush.box(-22.5, -18.5, 22.5, -11, 3.4, (170, 208, 255))
    elif hat == "straw hat":
        brush.ellipse(0, -14, 31, 6, (250, 216, 124))
        brush.curve(((-17, -15), (-15, -29), (-7, -34), (7, -34), (15, -29), (17, -15), (0, -13)), (255, 226, 146))
        brush.curve(((-17, -15), (-16.5, -20), (0, -18.5), (16.5, -20), (17, -15), (0, -13)), (228, 70, 70), ink=False)
    elif hat == "top hat":
        brush.ellipse(0, -15, 24, 4.6, (70, 62, 82))
        brush.polygon(((-14.5, -16), (-16, -38), (16, -38), (14.5, -16)), (70, 62, 82))
        brush.polygon(((-14.6, -18), (-15, -24), (15, -24), (14.6, -18)), (186, 96, 230), ink=False)
    elif hat == "gold crown":
        draw_crown(brush, -15)
    elif hat == "pink bow":
        draw_bow(brush, 9, -20, 1.35, (255, 110, 176))


def draw_crown(brush: Brush, y: float, k: float = 1.0) -> None:
    """A gold crown whose lower edge is at y."""
    teeth = ((-16, 0), (-19, -16), (-9, -8), (0, -19), (9, -8), (19, -16), (16, 0))
    brush.polygon(tuple((x * k, y + dy * k) for x, dy in teeth), (255, 206, 52))
    for x, colour in ((-8, (232, 52, 70)), (0, (64, 140, 240)), (8, (232, 52, 70))):
        brush.ellipse(x * k, y - 4.2 * k, 2.2 * k, 2.2 * k, colour, ink=False)


def draw_bow(brush: Brush, x: float, y: float, k: float, colour: Colour) -> None:
    """A bow with two loops around (x, y)."""
    for side in (-1, 1):
        brush.curve(
            ((x, y), (x + side * 8 * k, y - 6 * k), (x + side * 10 * k, y), (x + side * 8 * k, y + 6 * k)), colour
        )
    brush.ellipse(x, y, 2.8 * k, 2.8 * k, darker(colour, 0.15))
