"""Who is visible in a picture, who became something else, and who is too many."""

import json
from pathlib import Path

import pytest

from costars.builtin.segmenter import KINDS
from costars.segment.visibility import describe_extra_figures, find_extra_figures, judge_visibility
from costars_world.benchmarks.visibility import summarize

LEFT, RIGHT, MIDDLE = (0, 0, 0.5, 1), (0.5, 0, 1, 1), (0.4, 0, 0.9, 1)


@pytest.fixture
def regions(make_region):
    return {"a": make_region("man", LEFT), "b": make_region("woman", RIGHT)}


def test_everybody_in_place_is_visible(regions):
    seen = judge_visibility(regions, list(regions.values()), KINDS)
    assert (seen.lost, seen.seen_as) == ((), {})


def test_who_has_no_figure_in_place_is_lost(regions, make_region):
    assert judge_visibility(regions, [], KINDS).lost == ("a", "b")
    assert judge_visibility(regions, [regions["b"]], KINDS).lost == ("a",)
    seen = judge_visibility(regions, [make_region("man", (0.45, 0, 0.7, 0.5)), regions["b"]], KINDS)
    assert (seen.lost, seen.seen_as) == (("a",), {})


def test_who_became_something_else_is_named_with_it(regions, make_region):
    seen = judge_visibility(regions, [make_region("dog", LEFT, 0.9), regions["b"]], KINDS)
    assert (seen.lost, seen.seen_as) == (("a",), {"a": "dog"})


def test_a_class_of_the_same_kind_is_no_reason(make_region):
    dog = {"d": make_region("dog", LEFT)}
    assert judge_visibility(dog, [make_region("cat", LEFT)], KINDS).lost == ()
    assert judge_visibility(dog, [make_region("robot", LEFT)], KINDS).seen_as == {"d": "robot"}


def test_an_uncertain_class_and_a_class_that_the_segmenter_lacks_are_no_reason(regions, make_region):
    unsure = [make_region("dog", LEFT, 0.4), regions["b"]]
    assert judge_visibility(regions, unsure, KINDS).lost == ()
    elf = {"e": make_region("elf", LEFT)}
    assert judge_visibility(elf, [make_region("man", LEFT)], KINDS).lost == ()
    assert judge_visibility(elf, [], KINDS).lost == ("e",)


def test_figures_outside_the_regions_of_the_cast_are_extra(regions, make_region):
    only_a = {"a": regions["a"]}
    figures = [regions["a"], make_region("cat", (0.3, 0.2, 0.5, 0.8)), make_region("dog", (0.45, 0, 0.9, 0.5))]
    assert [figure.class_name for figure in find_extra_figures(only_a, figures)] == ["dog"]
    assert find_extra_figures(regions, list(regions.values())) == []


def test_strangers_are_counted_by_class():
    (note,) = describe_extra_figures("layout", ["man", "dog", "man"], 2)
    assert note.startswith("the layout shows more figures than the cast of 2: 2 man, 1 dog, which are drawn without")
    assert describe_extra_figures("layout", [], 2) == ()


def test_reported_rates_are_those_of_the_committed_rows():
    """Break the rule, and the figures of docs/results.md are no longer true."""
    facts = json.loads((Path(__file__).parents[2] / "docs" / "images" / "visibility.json").read_text())
    assert len({row["seed"] for row in facts["rows"]}) >= 60
    assert {row["seed"] for row in facts["rows"]}.isdisjoint(row["seed"] for row in facts["chosen_on"])
    for rows, report in ((facts["rows"], facts["report"]), (facts["chosen_on"], facts["report_chosen_on"])):
        assert summarize(rows) == report
