"""The size and the seed of a scene, as a person may write them."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from costars.scene.messages import shorten

SMALLEST_PX, LARGEST_PX = 64, 8192
RANDOM = "random"
RANDOM_SEEDS = 2**32  # as in AUTOMATIC1111 and ComfyUI, so that a seed can be used in other programs
_SIZE = re.compile(r"\s*(\d{1,6})\s*[x×]\s*(\d{1,6})\s*(?:px)?\s*", re.IGNORECASE)


def _parse_size(value: Any) -> Any:
    if isinstance(value, str) and (found := _SIZE.fullmatch(value)):
        value = [int(found[1]), int(found[2])]
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(_is_whole(side) for side in value):
        raise ValueError(f"want width and height in px, such as [1024, 768] or 1024x768 (got {shorten(value)})")
    for name, side in zip(("width", "height"), value, strict=True):
        if not SMALLEST_PX <= side <= LARGEST_PX:
            raise ValueError(f"{name} {side}: want {SMALLEST_PX} to {LARGEST_PX} px")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parse_seed(value: Any) -> Any:
    if value == RANDOM:
        return secrets.randbelow(RANDOM_SEEDS)
    if value in (-1, "-1"):  # in AUTOMATIC1111 a seed is chosen at random
        raise ValueError(f"want a whole number from 0 on (got -1); write {RANDOM} for a seed that is chosen at random")
    if isinstance(value, str) and not re.fullmatch(r"\s*-?\d{1,20}\s*", value):
        raise ValueError(f"want a whole number or random (got {shorten(value)})")
    return value


Size = Annotated[tuple[int, int], BeforeValidator(_parse_size, json_schema_input_type=tuple[int, int] | str)]
Seed = Annotated[
    int, Field(ge=0, lt=2**63), BeforeValidator(_parse_seed, json_schema_input_type=int | Literal["random"])
]
