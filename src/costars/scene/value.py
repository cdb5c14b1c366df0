"""The base of everything that a person may write."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic_core.core_schema import CoreSchema, no_info_wrap_validator_function

from costars.errors import SceneError
from costars.scene.messages import describe_problems

Unit = Annotated[float, Field(ge=0.0, le=1.0)]
_INSIDE: ContextVar[bool] = ContextVar("validation of an outer value", default=False)


class Value(BaseModel):
    """A frozen set of fields; unknown keys are rejected.

    Raises SceneError with one line for everything that is wrong, in Python as in a scene file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def class_at(cls, location: tuple[int | str, ...]) -> type[BaseModel]:
        """The class whose keys are allowed at this location of the value."""
        return cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let the outermost value report the problems of all its parts, also those of its own validators."""

        def validate(data: Any, inner: ValidatorFunctionWrapHandler) -> Any:
            if _INSIDE.get():
                return inner(data)
            token = _INSIDE.set(True)
            try:
                return inner(data)
            except ValidationError as error:
                raise SceneError(f"{cls.__name__.lower()}: {describe_problems(error, cls.class_at)}") from None
            finally:
                _INSIDE.reset(token)

        return no_info_wrap_validator_function(validate, handler(source))


class MethodOptions(Value):
    """What a scene may set of one method; the name says of which."""

    name: str
