"""What is wrong with a training config, in words that say what to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from costars.errors import nearest
from costars.scene.messages import describe_value, shorten

# What to write for a field that is missing, by its name.
MISSING: Mapping[str, str] = {
    "recipe": "recipe is missing; write one, such as recipe: lora",
    "name": "name is missing; give --name ana (name: ana in a file)",
    "class_name": "class is missing; give --class woman, or another word that the model knows (class: woman in a file)",
    "concepts": "concepts is missing; give name, class and images",
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
        return f"{where}: {describe_value(problem)}"
    return f"{where}: {describe_value(problem)} (got {shorten(problem['input'])})"
