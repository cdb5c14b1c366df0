"""What is wrong with a value that a person wrote, in words that say what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from costars.errors import nearest

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    FindClass = Callable[[tuple[int | str, ...]], type[BaseModel]]

_WHOLE, _NUMBER, _TEXT, _YES = "want a whole number", "want a number", "want text", "want true or false"
_KEYS, _LIST = "want keys and values", "want a list"
# pydantic's type of a problem: what is allowed. {limits} are in the problem's context.
_WANTED: Mapping[str, str] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), _NUMBER),
    **dict.fromkeys(("string_type", "string_unicode"), _TEXT),
    **dict.fromkeys(("bool_type", "bool_parsing"), _YES),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type", "dataclass_type", "mapping_type"), _KEYS),
    **dict.fromkeys(("list_type", "tuple_type", "iterable_type", "sequence_type"), _LIST),
    "greater_than_equal": "want at least {ge}",
    "greater_than": "want more than {gt}",
    "less_than_equal": "want at most {le}",
    "less_than": "want less than {lt}",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "want text that matches {pattern}",
    "literal_error": "want {expected}",
    "none_required": "leave it out",
    "missing": "is missing",
    "too_short": "want at least {min_length}",
    "too_long": "want at most {max_length}",
}
_WITHOUT_VALUE = ("missing", "string_too_short", "value_error", "extra_forbidden")


def describe_problems(error: ValidationError, find_class: FindClass) -> str:
    """Everything that is wrong, in one line; find_class gives the class whose keys are allowed at a location."""
    return "; ".join(dict.fromkeys(_describe_each(error, find_class)))


def _describe_each(error: ValidationError, find_class: FindClass) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"])
        message = _describe(problem, find_class)
        if problem["type"] not in _WITHOUT_VALUE:
            message += f" (got {shorten(problem['input'])})"
        yield f"{where}: {message}" if where else message


def _describe(problem: Mapping[str, Any], find_class: FindClass) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown key; {nearest(str(problem['loc'][-1]), find_class(problem['loc']).model_fields)}"
    return describe_value(problem)


def describe_value(problem: Mapping[str, Any]) -> str:
    """What is allowed in the place of a value that pydantic refused."""
    if wanted := _WANTED.get(problem["type"]):
        return wanted.format_map(problem.get("ctx", {}))
    return str(problem["msg"]).removeprefix("Value error, ")


def shorten(value: Any, most: int = 80) -> str:
    """repr of the value, with its middle left out if it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 20]} ... {text[-15:]}"
