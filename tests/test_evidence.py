"""Every picture and figure of the documentation is of the weights that ship, and can be found in a committed file."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from costars_world.benchmarks.cases import ADAPTER_WEIGHTS, TUNED_WEIGHT
from costars_world.benchmarks.provenance import DRAWN, hash_weights
from costars_world.benchmarks.publish import TABLE, write_tables

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
IMAGES, RESULTS, PAGE = DOCS / "images", DOCS / "results", DOCS / "results.md"
PICTURES = sorted(path.name for path in IMAGES.iterdir() if path.suffix in (".png", ".jpg"))
FIGURES = sorted(path.stem for path in RESULTS.glob("*.json"))
SECTIONS = re.split(r"^(?=## )", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
README = re.split(r"^(?=## )", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
MEASURED = next(section for section in README if section.startswith("## What is measured"))

CARD = re.compile(r"\]\(\.\./(src/[\w/]+/card\.json)\)")
NUMBER = re.compile(r"(?<![\w.,/-])(\d+\.\d+|\d+(?:\.\d+)? %)(?![\w.]*\d)")
# Settings, limits that a test holds, and sizes: no measured figures.
SETTINGS = {"0.12", "0.32", "0.1", "95 %", "40 %", "0.01", "0.3", "0.5"}


@pytest.fixture(scope="module")
def drawn():
    return json.loads((IMAGES / DRAWN).read_text())


@pytest.fixture(scope="module")
def shipped():
    return hash_weights("builtin", "judge", "world2")


def test_every_picture_is_noted(drawn):
    assert sorted(drawn) == PICTURES


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_of_the_weights_that_ship(name, drawn, shipped):
    note = drawn[name]
    assert hashlib.sha256((IMAGES / name).read_bytes()).hexdigest() == note["sha256"], f"changed; {note['command']}"
    assert note["weights"] and note["weights"].items() <= shipped.items(), f"older weights; {note['command']}"


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_shown_somewhere(name):
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    assert any(f"images/{name})" in page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_of_the_weights_that_ship(name, shipped):
    facts = json.loads((RESULTS / f"{name}.json").read_text())
    if "weights" in facts:
        assert facts["weights"].items() <= shipped.items(), f"older weights; {facts['command']}"
        (module,) = re.findall(r"python -m ([\w.]+)", facts["command"])
        path = ROOT / "src" / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_figures_without_weights_are_those_of_random_ones():
    found = {name for name in FIGURES if "weights" not in json.loads((RESULTS / f"{name}.json").read_text())}
    assert found <= {"adapters", "bench-sdxl-tiny", "kernel-counts"}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_used(name):
    assert f"(results/{name}.json)" in PAGE.read_text(encoding="utf-8")


def test_tables_are_those_of_the_figures():
    text = PAGE.read_text(encoding="utf-8")
    assert write_tables(text, RESULTS) == text
    assert len(TABLE.findall(text)) >= 8


def numbers_of(value):
    """Every number in a value of JSON."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers_of(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def find_unknown(text, numbers):
    """The decimal numbers and percentages of a text, outside code and tables, that round none of the numbers."""
    prose = re.sub(r"```.*?```|`[^`]*`|^\|.*$", "", text, flags=re.DOTALL | re.MULTILINE)
    for found in NUMBER.findall(prose):
        digits, percent = found.removesuffix(" %"), found.endswith(" %")
        half = 0.5 * 10.0 ** -len(digits.partition(".")[2]) + 1e-9
        values = (100 * n if percent else n for n in numbers)
        if found not in SETTINGS and not any(abs(value - float(digits)) <= half for value in values):
            yield found


@pytest.mark.parametrize("section", SECTIONS, ids=lambda text: text.partition("\n")[0].removeprefix("## "))
def test_numbers_of_the_results_are_in_the_files_that_they_name(section):
    names = {*re.findall(r"\(results/([\w-]+)\.json\)", section), *(m[1] for m in TABLE.findall(section))}
    files = [RESULTS / f"{name}.json" for name in names] + [ROOT / card for card in CARD.findall(section)]
    numbers = [n for file in files for n in numbers_of(json.loads(file.read_text()))]
    assert not [*find_unknown(section, numbers)], sorted(names)


def test_numbers_of_the_readme_are_in_the_figures():
    cards = [*ROOT.glob("src/**/card.json")]
    numbers = [n for file in [*RESULTS.glob("*.json"), *cards] for n in numbers_of(json.loads(file.read_text()))]
    assert not [*find_unknown(MEASURED, numbers)]


def test_a_number_of_no_file_is_found():
    known = [0.594, 0.85]
    assert [*find_unknown("It is 0.59, or 85 %, not `0.77` and not\n| 0.66 |\n", known)] == []
    assert [*find_unknown("It is 0.58 (86 %); 0.594 of 0.5931.", known)] == ["0.58", "86 %", "0.5931"]


def test_the_tuned_baseline_has_the_best_weight():
    rows = json.loads((RESULTS / "weight.json").read_text())["rows"]
    best = max(rows, key=lambda row: row["similarity"]["mean"])
    assert [float(row["variant"]) for row in rows] == list(ADAPTER_WEIGHTS) and float(best["variant"]) == TUNED_WEIGHT


@pytest.mark.parametrize("name", ["ablation", "start", "count", "weight", "identity", "degradation"])
def test_figures_of_scenes_are_of_eight_layouts_or_say_fewer(name):
    """Intervals over fewer layouts say little; only the kinds of pair of the identity benchmark have six each."""
    rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    assert rows
    for row in rows:
        assert row["tried"] >= (6 if name == "identity" else 8)
        assert row["layouts"] <= row["scenes"] <= row["tried"]
