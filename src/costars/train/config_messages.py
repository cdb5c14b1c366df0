"""What is wrong with a training config, in words that say what to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from costars.errors import nearest

# What to write for a field that is missing, by its name.
MISSING: Mapping[str, str] = {
    "recipe": "recipe is missing; write one, such as recipe: lora",
    "name": "name is missing; give --name ana (name: ana in a file)",
    "class_name": "class is missing; give --class woman, or another word that the model knows (class: woman in a file)",
    "concepts": "concepts is missing; give name, class and images",
}
_WHOLE, _NUMBER, _TEXT = "want a whole number", "want a number", "want text"
# pydantic's kind of a problem: what is allowed. {names} are in the problem's context.
WANTED: Mapping[str, str] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), _NUMBER),
    **dict.fromkeys(("string_type", "string_unicode"), _TEXT),
    **dict.fromkeys(("bool_type", "bool_parsing"), "want true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "want a list"),
    **dict.fromkeys(("dict_type", "model_type", "dataclass_type"), "want keys and values"),
    "too_short": "want at least one",
    "literal_error": "want {expected}",
    "none_required": "leave it out",
}


def describe_problem(problem: Mapping[str, Any], location: Sequence[str], fields: Iterable[str]) -> str:
    """One problem that pydantic found at this location of a config, whose keys are the fields."""
    kind, where = problem["type"], ".".join(location)
    if kind == "extra_forbidden":
        return f"{where}: unknown key; {nearest(location[-1], fields)}"
    if kind == "missing":
        place = f"{'.'.join(location[:-1])}: " if location[:-1] else ""
        return place + MISSING.get(location[-1], f"{location[-1]} is missing")
    if kind == "value_error":
        return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
    wanted = WANTED[kind].format_map(problem.get("ctx", {})) if kind in WANTED else problem["msg"]
    return f"{where}: {wanted} (got {str(repr(problem['input']))[:80]})"
