"""What a scene may set of the baseline: nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from costars.scene.value import MethodOptions


class MultiLora(MethodOptions):
    """The baseline: every adapter at once on one path."""

    DEFAULTS: ClassVar[Mapping[str, Mapping[str, float]]] = {}

    name: Literal["multi_lora"] = "multi_lora"


OPTIONS = MultiLora
