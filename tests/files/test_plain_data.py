"""Text becomes plain, bounded data, or an error of one line; quickly, whatever it says."""

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from costars.errors import ReadError
from costars.files.plain_data import PARSERS, parse_foreign_json, parse_json, parse_toml, parse_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
BAD = [
    (".yaml", BOMB, "more than 200000 values, with aliases written out"),
    (".yaml", "a: &a [*a]", "the alias *a is unknown, or inside what it stands for"),
    (".yaml", "a: *b", "alias"),
    (".yaml", "[" * 60 + "]" * 60, "nested more than 50 deep"),
    (".yaml", "- " * 5_000 + "x", "nested more than 50 deep"),
    (".yaml", "a: 2026-11-26", "a: '2026-11-26' is a date, not text or a number; write it in quotes"),
    (".yaml", "a: !!int x", "not valid YAML"),
    (".yaml", "a: !!bool x", "not valid YAML"),
    (".yaml", "a: !!float x", "not valid YAML"),
    (".yaml", "a: !!timestamp x", "not valid YAML"),
    (".yaml", "a: !!binary eA==", "a: \"b'x'\" is a bytes"),
    (".yaml", "a: !!set {x, y}", "is a set, not text"),
    (".yaml", "a: !!python/object:os.system x", "could not determine a constructor"),
    (".yaml", "? [a]\n: b", "unhashable key"),
    (".yaml", "no: ana", "the key 'False' is a bool, not text; write it in quotes"),
    (".yaml", "1: ana", "the key '1' is a int, not text"),
    (".yaml", "a: 1\na: 2", "duplicate key 'a'"),
    (".yaml", "a: {b: {c: 1, c: 2}}", "duplicate key 'c'"),
    (".yaml", f"a: {'9' * 6_000}", "a number of 6000 digits, at most 40 are allowed"),
    (".yaml", f"a: 0x{'f' * 10_000}", "a number of 10002 digits"),
    (".yaml", f"a: 1{':1' * 100_000}", "a number of 200001 digits"),
    (".yaml", "a: .nan", "a: nan is not a finite number"),
    (".yaml", "a: -.inf", "a: -inf is not a finite number"),
    (".yaml", '"\\ud800": a', "invalid Unicode"),
    (".yaml", "a: b\n---\na: c", "expected a single document"),
    (".json", "[" * 100_000, "nested more than 50 deep"),
    (".json", "[" * 60 + "]" * 60, "nested more than 50 deep"),
    (".json", '{"a": 1, "a": 2}', "duplicate key 'a'"),
    (".json", f'{{"a": {"9" * 6_000}}}', "a number of 6000 digits"),
    (".json", '{"a": NaN}', "NaN is not a finite number"),
    (".json", '{"a": 1e999}', "a: inf is not a finite number"),
    (".json", '{"a": "\\ud800"}', "a: '\\ud800' is not valid Unicode"),
    (".json", '{"a": "\n"}', "Invalid control character"),
    (".json", "", "Expecting value"),
    (".toml", "a = " + "[" * 5_000, "nested more than 50 deep"),
    (".toml", "a" + ".a" * 200_000 + " = 1", "a key of more than 50 parts"),
    (".toml", "a = 1\na = 2", "Cannot overwrite a value"),
    (".toml", "a = 2026-11-26", "is a date, not text"),
    (".toml", "a = nan", "a: nan is not a finite number"),
    (".toml", f"a = {'9' * 6_000}", "not valid TOML"),
    (".toml", f"a = 0x{'f' * 10_000}", "a number of more than 40 digits"),
]


@pytest.mark.parametrize(("suffix", "text", "reason"), BAD, ids=[f"{s}-{r[:40]}" for s, _, r in BAD])
def test_what_is_not_plain_data_is_refused_in_one_line_and_at_once(suffix, text, reason):
    began = time.process_time()
    with pytest.raises(ReadError) as caught:
        PARSERS[suffix](text, "scene")
    message = str(caught.value)
    assert message.startswith("scene: not valid ") and reason in message
    assert "\n" not in message and len(message) < 500
    assert time.process_time() - began < 2


def test_usual_yaml_is_read_as_pyyaml_reads_it():
    text = "base: &base {a: 1, b: [x, 2.5, true, null]}\nmore: {<<: *base, c: '2026-11-26'}\nagain: *base\nn: 0x1F"
    assert parse_yaml(text, "x") == yaml.safe_load(text)


def test_json_of_other_programs_may_be_less_strict():
    text = '{"a": NaN, "a": "\\ud800"}'
    assert parse_foreign_json(text, "x") == {"a": "\ud800"}
    with pytest.raises(ReadError, match="nested more than 50 deep"):
        parse_foreign_json("[" * 60 + "]" * 60, "x")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**39), 10**39) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\u00e9", max_size=4), inner),
    max_leaves=10,
)  # fmt: skip


@given(VALUES)
def test_plain_data_comes_back_from_json_and_yaml(value):
    import json

    assert parse_json(json.dumps(value), "x") == value
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=False), "x") == value


def test_toml_is_read():
    assert parse_toml("prompt = 'a.b.c'\n[cast.ana]\nconcept = 'x'", "x") == {
        "prompt": "a.b.c",
        "cast": {"ana": {"concept": "x"}},
    }


@pytest.mark.parametrize("text", ["010", "-07", "1:30"])
def test_number_of_another_base_is_not_guessed(text):
    with pytest.raises(ReadError, match="would be a number of base 8 or 60; write it in base 10, or in quotes"):
        parse_yaml(f"seed: {text}", "x")
