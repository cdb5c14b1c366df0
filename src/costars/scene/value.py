"""The base of everything that a person may write."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Annotated, Any, get_args

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

        def validate_inside(data: Any, inner: ValidatorFunctionWrapHandler) -> Any:
            if isinstance(data, Mapping):
                _check_switches(cls, data)
            return inner(data)

        def validate(data: Any, inner: ValidatorFunctionWrapHandler) -> Any:
            if _INSIDE.get():
                return validate_inside(data, inner)
            token = _INSIDE.set(True)
            try:
                return validate_inside(data, inner)
            except ValidationError as error:
                raise SceneError(f"{cls.__name__.lower()}: {describe_problems(error, cls.class_at)}") from None
            except ValueError as error:  # of the outermost value itself
                raise SceneError(f"{cls.__name__.lower()}: {error}") from None
            finally:
                _INSIDE.reset(token)

        return no_info_wrap_validator_function(validate, handler(source))


def _check_switches(kind: type[BaseModel], data: Mapping[Any, Any]) -> None:
    """Raises ValueError for a switch (true, or yes and on in YAML) where a number or a text is wanted."""
    for key, value in data.items():
        field = kind.model_fields.get(key) if isinstance(key, str) else None
        if isinstance(value, bool) and field is not None and bool not in _plain_types(field.annotation):
            raise ValueError(
                f"{key}: {str(value).lower()} is a switch (yes, no, on and off too); want a value, or quotes"
            )


def _plain_types(annotation: Any) -> set[Any]:
    """The types in an annotation, also those within unions."""
    inner = get_args(annotation)
    return {annotation}.union(*map(_plain_types, inner)) if inner else {annotation}


class MethodOptions(Value):
    """What a scene may set of one method; the name says of which."""

    name: str
