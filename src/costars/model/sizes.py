"""The sizes that a model was made for."""

from __future__ import annotations

from costars.model.model import ModelInfo
from costars.scene.scene import BUILTIN

# Least and most area of a picture, in areas of the model's own size. SD 1.5 repeats figures from about twice its area
# on; SDXL was trained on small pictures under size ids that say so, and draws half-empty ones below half its area
# (Podell et al. 2023, arXiv 2307.01952, section 2.2).
LEAST_AREA, MOST_AREA = 0.5, 1.8


def describe_size(size_px: tuple[int, int], info: ModelInfo) -> tuple[str, ...]:
    """A note if a picture of (width, height) px is far from the size that the model was made for."""
    (width, height), (own_width, own_height) = size_px, info.size_px
    area = width * height / (own_width * own_height)
    is_fixed = info.name == BUILTIN  # trained on pictures of one size
    if size_px == info.size_px or (not is_fixed and LEAST_AREA <= area <= MOST_AREA):
        return ()
    cost = f"; it also takes {area:.0f} times as long" if area >= 2 else ""
    other = (
        "it was trained on no other size" if is_fixed else f"or another of {LEAST_AREA} to {MOST_AREA} times its area"
    )
    fault = "repeated or extra figures" if area > 1 else "blurred or missing figures"
    return (
        f"size {width}x{height}: the model was made for {own_width}x{own_height}, and other sizes often give "
        f"{fault}{cost}; use {own_width}x{own_height} ({other}) and enlarge the picture afterwards",
    )
