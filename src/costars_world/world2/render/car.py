"""An open toy car seen from the side; riders sit between its back layer and its front layer."""

from __future__ import annotations

from costars_world.world2.render.brush import INK, Brush, Colour, Points, darker, mix
from costars_world.world2.render.emblems import draw_badge, draw_pattern
from costars_world.world2.render.identity import Identity
from costars_world.world2.render.palette import WHITE, WORD_COLOURS

_GLASS: Colour = (196, 236, 255)
_TYRE: Colour = (62, 58, 74)
_BODY: dict[str, Points] = {
    "round": (
        (-43, -10),
        (-42, -24),
        (-32, -34),
        (-22, -35),
        (22, -35),
        (34, -32),
        (43, -22),
        (43, -10),
        (20, -7),
        (-20, -7),
    ),
    "sporty": (
        (-44, -10),
        (-44, -30),
        (-36, -32),
        (-24, -31),
        (14, -33),
        (30, -27),
        (45, -20),
        (46, -11),
        (20, -7),
        (-20, -7),
    ),
    "boxy": ((-43, -8), (-43, -35), (-41, -36), (20, -36), (24, -28), (43, -27), (44, -9), (42, -7), (-42, -7)),
}


def draw_car(brush: Brush, who: Identity, layer: str) -> None:
    """Draw one layer of a car: "back" is the seat and the windscreen, "front" the body and the wheels."""
    colour, second = WORD_COLOURS[who["colour"]], WORD_COLOURS[who["second"]]
    if layer == "back":
        brush.box(-32, -50, -21, -28, 4, darker(colour, 0.3))
        brush.polygon(((16, -32), (21, -32), (32, -54), (27, -54)), _GLASS)
        brush.box(-26, -40, 24, -26, 3, darker(colour, 0.45))
        return
    body = _BODY[who["shape"]]
    if who["shape"] == "boxy":
        brush.polygon(body, colour)
    else:
        brush.curve(body, colour)
    pattern = who["pattern"]
    if pattern == "plain":
        brush.box(-40, -11.5, 40, -9, 1, second, ink=False)
    elif pattern == "striped":
        for y in (-25.0, -18.5):
            brush.box(-41, y, 40, y + 3.4, 1, second, ink=False)
    elif pattern == "flames":
        brush.polygon(((42, -25), (14, -29), (24, -24), (2, -22), (20, -19), (6, -14), (42, -13)), second, ink=False)
    else:
        draw_pattern(brush, "dotted", second, (-36, -31, 36, -14))
    draw_badge(brush, who["emblem"], -4, -21, 9.4)
    brush.ellipse(40, -20, 4, 4.6, (255, 240, 150))
    brush.box(-47, -13, -38, -8, 2.4, (206, 212, 224))
    brush.box(38, -13, 47, -8, 2.4, (206, 212, 224))
    for x in (-25, 25):
        brush.ellipse(x, -9.4, 9.4, 9.4, _TYRE)
        brush.ellipse(x, -9.4, 4.8, 4.8, mix(second, WHITE, 0.25) if second != _TYRE else WHITE, ink=False)
        brush.ellipse(x, -9.4, 1.6, 1.6, INK, ink=False)
