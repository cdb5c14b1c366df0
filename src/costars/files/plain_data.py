"""Plain data (JSON, YAML, TOML) from text that anybody may have written: bounded in size, depth, digits and aliases.

The result consists of None, bool, int, float, str, list and dict with text as keys, all of it finite, valid Unicode and
free of duplicate keys. Everything else is a ReadError of one line.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from costars.errors import ReadError, to_one_line
from costars.files.regular_file import MAX_TEXT_BYTES, read_text

MAX_DEPTH = 50  # lists and mappings inside each other; a scene has 5
MAX_VALUES = 200_000  # with every YAML alias replaced by what it stands for
MAX_DIGITS = 40  # of an integer; tokenizers state a length of 31 digits
_CLEAR_INT = re.compile(r"[-+]?(?:0|[1-9][\d_]*|0x[\da-fA-F_]+|0b[01_]+)")  # others are not what they look like
_SURROGATE = re.compile("[\ud800-\udfff]")
# tomllib takes quadratic time for a dotted key, so long ones are found before. Possessive: linear time.
_LONG_TOML_KEY = re.compile(rf"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}""")
_SCALARS = (str, bool, int, float, type(None))


class _LimitError(ValueError):
    """What is wrong with a value; the caller adds the origin."""


def read_data(path: Path) -> Any:
    """Plain data of a .yaml, .yml, .toml or .json file. Raises ReadError; the suffix must be one of PARSERS."""
    return PARSERS[path.suffix](read_text(path), path)


def read_json(path: Path, most: int = MAX_TEXT_BYTES) -> Any:
    """Plain data of a JSON file of at most `most` bytes. Raises ReadError."""
    return parse_json(read_text(path, most), path)


def parse_json(text: str | bytes, origin: object) -> Any:
    """Plain data of JSON text; origin names the text in errors. Raises ReadError."""
    return _parse(_load_json, text, "JSON", origin)


def parse_foreign_json(text: str | bytes, origin: object) -> Any:
    """JSON that another program wrote: bounded too, but it may contain duplicate keys, NaN and invalid Unicode."""
    return _parse(json.loads, text, "JSON", origin, _check_depth)


def parse_yaml(text: str, origin: object) -> Any:
    """Plain data of a YAML document; origin names the text in errors. Raises ReadError."""
    return _parse(_load_yaml, text, "YAML", origin)


def parse_toml(text: str, origin: object) -> Any:
    """Plain data of a TOML document; origin names the text in errors. Raises ReadError."""
    return _parse(_load_toml, text, "TOML", origin)


PARSERS: Mapping[str, Callable[[str, object], Any]] = {
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".toml": parse_toml,
    ".json": parse_json,
}


def _parse(
    load: Callable[[Any], Any],
    text: str | bytes,
    kind: str,
    origin: object,
    check: Callable[[Any], None] | None = None,
) -> Any:
    try:
        data = load(text)
        (check or check_values)(data)
    except RecursionError:
        problem = f"nested more than {MAX_DEPTH} deep"
    except Exception as error:  # PyYAML raises many types for values that do not fit their tag
        problem = to_one_line(error, 300)
    else:
        return data
    raise ReadError(origin, f"not valid {kind}: {problem}", "correct it")


def _load_json(text: str | bytes) -> Any:
    return json.loads(text, parse_int=_parse_int, parse_constant=_refuse_constant, object_pairs_hook=_to_unique_dict)


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _LimitError(f"a number of {len(text)} digits, at most {MAX_DIGITS} are allowed")
    return int(text)


def _refuse_constant(text: str) -> None:
    raise _LimitError(f"{text} is not a finite number")


def _to_unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _LimitError(f"duplicate key {_find_duplicate(keys)[:60]!r}")
    return result


def _find_duplicate(keys: list[str]) -> str:
    seen = set[str]()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _load_toml(text: str) -> Any:
    if _LONG_TOML_KEY.search(text):
        raise _LimitError(f"a key of more than {MAX_DEPTH} parts")
    return tomllib.loads(text)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader, in C where PyYAML was built so, without duplicate keys and long numbers."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        if isinstance(node, yaml.MappingNode):
            keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys):
                raise _LimitError(f"duplicate key {_find_duplicate([value for _, value in keys])[:60]!r}")
        result: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return result

    def construct_yaml_int(self, node: Any) -> Any:
        _parse_length(node.value)
        if not _CLEAR_INT.fullmatch(node.value):
            raise _LimitError(f"{node.value!r} would be a number of base 8 or 60; write it in base 10, or in quotes")
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _parse_length(text: object) -> None:
    if len(str(text)) > MAX_DIGITS:
        raise _LimitError(f"a number of {len(str(text))} digits, at most {MAX_DIGITS} are allowed")


def _load_yaml(text: str) -> Any:
    _check_yaml_events(text)
    return yaml.load(text, Loader=_Loader)


def _check_yaml_events(text: str) -> None:
    """Bound depth and size, with aliases counted as what they stand for, before anything is built."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and number of values before
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        match event:
            case yaml.AliasEvent():
                if event.anchor not in sizes:
                    raise _LimitError(f"the alias *{event.anchor} is unknown, or inside what it stands for")
                count += sizes[event.anchor]
            case yaml.ScalarEvent():
                count += 1
                if event.anchor is not None:
                    sizes[event.anchor] = 1
            case yaml.CollectionStartEvent():
                open_nodes.append((event.anchor, count))
                sizes.pop(event.anchor or "", None)
                count += 1
            case yaml.CollectionEndEvent():
                anchor, before = open_nodes.pop()
                if anchor is not None:
                    sizes[anchor] = count - before
        if len(open_nodes) > MAX_DEPTH:
            raise _LimitError(f"nested more than {MAX_DEPTH} deep")
        if count > MAX_VALUES:
            raise _LimitError(f"more than {MAX_VALUES} values, with aliases written out")


def check_values(data: Any) -> None:
    """Raises ValueError for a value that is not plain: another type, not finite, too long, too deep, or not Unicode."""
    for key, value in _walk(data):
        if isinstance(value, dict):
            for inner in value:
                _check_key(inner)
        elif not isinstance(value, list):
            _check_scalar(value, f"{key[:60]}: " if key else "")


def _check_depth(data: Any) -> None:
    for _ in _walk(data):
        pass


def _walk(data: Any) -> Iterator[tuple[str, Any]]:
    """(the nearest key above, value) of every value. Raises ValueError if there are too many, or too deep ones."""
    waiting: list[tuple[Any, int, str]] = [(data, 1, "")]
    count = 0
    while waiting:
        value, depth, key = waiting.pop()
        count += 1
        if depth > MAX_DEPTH + 1:
            raise _LimitError(f"nested more than {MAX_DEPTH} deep")
        if count > MAX_VALUES:
            raise _LimitError(f"more than {MAX_VALUES} values")
        yield key, value
        if isinstance(value, dict):
            waiting += [(inner, depth + 1, inner_key) for inner_key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1, key) for inner in value]


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise _LimitError(f"the key {str(key)[:60]!r} is a {type(key).__name__}, not text; write it in quotes")
    if _SURROGATE.search(key):
        raise _LimitError(f"the key {key[:60]!r} is not valid Unicode")


def _check_scalar(value: object, place: str) -> None:
    if not isinstance(value, _SCALARS):
        kind = type(value).__name__
        raise _LimitError(f"{place}{str(value)[:60]!r} is a {kind}, not text or a number; write it in quotes")
    if isinstance(value, str) and _SURROGATE.search(value):
        raise _LimitError(f"{place}{value[:60]!r} is not valid Unicode")
    if isinstance(value, float) and not math.isfinite(value):
        raise _LimitError(f"{place}{value} is not a finite number")
    if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        raise _LimitError(f"{place}a number of more than {MAX_DIGITS} digits")
