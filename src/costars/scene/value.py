"""The base of everything that a person may write."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Unit = Annotated[float, Field(ge=0.0, le=1.0)]


class Value(BaseModel):
    """A frozen set of fields; unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MethodOptions(Value):
    """What a scene may set of one method; the name says of which."""

    name: str
