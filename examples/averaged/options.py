"""What a scene may set of the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from costars import MethodOptions


class Averaged(MethodOptions):
    """One path for each member, without masks; their noise is averaged."""

    DEFAULTS: ClassVar[Mapping[str, Mapping[str, float]]] = {}  # {model: {field: value}} of fields that are None

    name: Literal["averaged"] = "averaged"
    first_share: float = Field(0.5, ge=0.0, le=1.0, description="weight of the first member; the others share the rest")


OPTIONS = Averaged
