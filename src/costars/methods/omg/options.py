"""What a scene may set of OMG's two stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from costars.scene.value import MethodOptions, Unit


class TwoStage(MethodOptions):
    """OMG: draw the layout with class words, find each figure, then draw each identity in its place."""

    # {model: {field: value}} for the fields that a scene leaves open; "" is any other model (the official code).
    # The built-in model's values were measured (docs/results.md); "start" is a field of the scene.
    DEFAULTS: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "": {"start": 16 / 50, "own_words_share": 0.0, "other_words_share": 0.0},
        "builtin": {"start": 0.12, "own_words_share": 1.0, "other_words_share": 1.0},
    }

    name: Literal["two_stage"] = "two_stage"
    blend: bool = Field(
        True, description="blend the members' noise by the masks (Eq. 6 of OMG); false: all adapters on one path"
    )
    feather_cells: float = Field(0.0, ge=0.0, le=8.0, description="soft mask edge, in latent cells (OMG: 0)")
    overlap: Literal["front", "sum"] = Field(
        "front",
        description="a cell that several masks cover (edited or given masks may overlap): "
        "front gives it to the front figure, sum adds their noise (official code)",
    )
    cross_replace_steps: Unit = Field(
        1.0, description="share of the steps that use the layout's cross-attention (OMG, official code: 1)"
    )
    self_replace_steps: Unit = Field(
        0.4, description="share of the steps that use the layout's self-attention too (OMG, official code: 0.4)"
    )
    self_attention_cell_px: int = Field(
        32,
        ge=1,
        description="finest cell, in px, of the layers whose self-attention is replaced "
        "(official code: 32 x 32 at 1024 px)",
    )
    attention_cache: Literal["replay", "device"] = Field(
        "replay",
        description="source of the layout's cross-attention once its self-attention is no longer used: "
        "replay computes it again beside the other rows; device keeps it from stage 1 in the device's memory until "
        "the picture is drawn (240 MB a step for SDXL at 1024 px). The picture is the same",
    )
    own_words_share: Unit | None = Field(
        None,
        description="share of the steps, from the first, in which a member's own words reach only its mask; "
        "needs blend; default: 1 on the built-in model, 0 on any other (official code)",
    )
    other_words_share: Unit | None = Field(
        None,
        description="share of the steps, from the first, in which class words of other classes do not reach a "
        "member's mask; default: 1 on the built-in model, 0 on any other (official code)",
    )


OPTIONS = TwoStage
