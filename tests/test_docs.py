"""The documentation names files, commands and options that exist."""

import re
import tomllib
from pathlib import Path

import pytest
import typer

from costars.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md")])
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}

LINK = re.compile(r"\]\(([^)\s]+)\)")
REPOSITORY_PATH = re.compile(r"(?<![\w./-])((?:src|tests|docs|bench|examples|\.ci|\.github)/[\w./*-]*[\w*/])")
PACKAGE_PATH = re.compile(r"`((?!(?:src|tests|docs|bench|examples)/)(?:[a-z_]+/)*[a-z0-9_]+\.py)`")
MODULE = re.compile(r"python -m (costars[\w.]*\w)")
COMMAND = re.compile(r"(?<![\w.])costars((?: [a-z]+)+)([^\n`#]*)")
MAKE = re.compile(r"(?:`|^)make (?:[A-Z]+=\S+ )?([a-z]+)", re.MULTILINE)
QUESTION = re.compile(r"^\| Where .*\? \| `([^`]+)` \|$", re.MULTILINE)
PLACEHOLDERS = ("NAME", "photos/", "DIR")

commands = typer.main.get_command(app).commands


def find_all(pattern):
    """Every match of the pattern with the page that it is on."""
    return sorted({(page, match.group(1)) for page, text in TEXTS.items() for match in pattern.finditer(text)})


@pytest.mark.parametrize(("page", "target"), [found for found in find_all(LINK) if "://" not in found[1]])
def test_links_point_to_existing_files(page, target):
    path, _, anchor = target.partition("#")
    linked = (ROOT / page).parent / path if path else ROOT / page
    assert linked.exists(), f"{page}: {target}"
    if anchor:
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "path"), find_all(REPOSITORY_PATH))
def test_paths_of_the_repository_exist(page, path):
    if not any(placeholder in path for placeholder in PLACEHOLDERS):
        assert list(ROOT.glob(path)), f"{page}: {path}"


@pytest.mark.parametrize(("page", "path"), find_all(PACKAGE_PATH))
def test_modules_named_without_a_folder_exist(page, path):
    assert list(ROOT.glob(f"src/costars*/**/{path}")) or (ROOT / path).exists(), f"{page}: {path}"


@pytest.mark.parametrize(("page", "module"), find_all(MODULE))
def test_programs_exist(page, module):
    path = ROOT / "src" / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page}: python -m {module}"


@pytest.mark.parametrize(("page", "target"), find_all(MAKE))
def test_make_targets_exist(page, target):
    assert target in re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page}: make {target}"


def find_commands():
    """Every costars command line of the documentation, as (page, words, rest of the line)."""
    for page, text in TEXTS.items():
        for match in COMMAND.finditer(text):
            words = match.group(1).split()
            if words[0] in commands:
                yield page, words, match.group(2)


@pytest.mark.parametrize(("page", "words", "rest"), [*find_commands()])
def test_options_of_the_command_line_exist(page, words, rest):
    command = commands[words[0]]
    if hasattr(command, "commands"):
        assert len(words) > 1 and words[1] in command.commands, f"{page}: costars {' '.join(words)}"
        command = command.commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    for option in re.findall(r"(?<=\s)--[a-z-]+", rest):
        assert option in known, f"{page}: costars {' '.join(words)} {option}"


def test_drawing_of_the_layers_matches_the_import_contract():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    layers = [[name for name in layer.split(" | ") if "(" not in name] for layer in contract["layers"]]
    drawing = TEXTS["CONTRIBUTING.md"].partition("```\ncli ")[2].partition("```")[0]
    drawn = [re.split(r"  +", line)[0].split(" | ") for line in ("cli " + drawing).splitlines()]
    assert drawn == [layer for layer in layers if layer]


def test_where_is_what_answers_twenty_questions():
    answers = QUESTION.findall(TEXTS["CONTRIBUTING.md"])
    assert len(answers) >= 20 and len({*answers}) == len(answers)
    for path in answers:
        assert (ROOT / path).is_file(), path


def test_glossary_explains_ten_words():
    glossary = TEXTS["CONTRIBUTING.md"].partition("## Glossary")[2].partition("## ")[0]
    words = re.findall(r"^\| (\w+) \| ", glossary, re.MULTILINE)
    expected = {"path", "rule", "region", "plan", "layout", "concept", "member", "adapter", "recipe", "family"}
    assert {*words} == expected | {"word"}


def test_every_decision_has_its_number_in_name_and_title():
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{i:04d}" for i in range(1, len(pages) + 1)]
    for page in pages:
        assert page.read_text(encoding="utf-8").startswith(f"# {page.name[:4]} ")
