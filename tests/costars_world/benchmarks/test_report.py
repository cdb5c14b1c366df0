"""Tables compare variants on the same scenes."""

from costars_world.benchmarks import report
from costars_world.benchmarks.cases import Case, make_pair_scene


def scored(case, **facts):
    base = {"similarity": 0.5, "attributes": 0.5, "first": 1.0, "iou": None}
    return case, {"failed": None, "means": base | facts, "order_kept": [True], "rows": {"stage1": 100}}


def case(variant, seed, group="man+man"):
    return Case(group, variant, seed, make_pair_scene("man+man", seed))


def test_seed_counts_only_with_an_image_of_every_variant():
    failed = (case("two_stage", 1), {"failed": "the layout does not show bo"})
    drawn = [
        scored(case("two_stage", 0), similarity=0.9, iou=0.8),
        scored(case("multi_lora", 0), similarity=0.3),
        failed,
        scored(case("multi_lora", 1), similarity=1.0),
    ]
    two, multi = report.summarize(drawn)
    assert (
        (two["tried"], two["layouts"], two["scenes"])
        == (multi["tried"], multi["layouts"], multi["scenes"])
        == (2, 1, 1)
    )
    assert two["similarity"]["mean"] == 0.9 and multi["similarity"]["mean"] == 0.3
    assert two["iou"]["mean"] == 0.8 and multi["iou"] is None
    assert "| man+man | multi_lora | 2 | 1 | 1 | 0.30 (0.30 to 0.30)" in report.to_markdown([two, multi])
    assert "change" not in two


def test_change_is_computed_scene_by_scene():
    drawn = [
        scored(case(variant, seed), similarity=value)
        for seed, values in enumerate(({"alone": 0.9, "joint": 0.7}, {"alone": 0.5, "joint": 0.1}))
        for variant, value in values.items()
    ]
    alone, joint = report.summarize(drawn, "alone")
    assert alone["change"] is None and joint["change"] == {"n": 2, "mean": -0.3, "low": -0.4, "high": -0.2}


def test_failed_layout_removes_its_scene_from_every_variant():
    def of(kind, variant, **facts):
        made, told = scored(Case("all pairs", variant, 0, make_pair_scene(kind, 0), kind))
        return made, told | facts

    drawn = [
        of("man+man", "two_stage", failed="nobody"),
        of("man+man", "alone"),
        of("man+woman", "two_stage"),
        of("man+woman", "alone"),
    ]
    assert [(row["scenes"], row["pictures"]) for row in report.summarize(drawn)] == [(1, 1), (1, 1)]


def test_interval_contains_the_mean_and_narrows_with_more_values():
    few, many = report.bootstrap_interval([[0.0], [1.0]] * 5), report.bootstrap_interval([[0.0], [1.0]] * 200)
    assert few["low"] < few["mean"] == 0.5 < few["high"] and (few["n"], many["n"]) == (10, 400)
    assert many["high"] - many["low"] < 0.5 * (few["high"] - few["low"])
    assert report.bootstrap_interval([]) is report.bootstrap_interval([[], []]) is None


def test_values_of_one_layout_count_as_one_sample():
    """Ten pictures of two layouts say as little as one picture of each."""
    alone = report.bootstrap_interval([[0.0], [1.0]])
    repeated = report.bootstrap_interval([[0.0] * 5, [1.0] * 5])
    independent = report.bootstrap_interval([[v] for v in [0.0] * 5 + [1.0] * 5])
    assert (repeated["low"], repeated["high"]) == (alone["low"], alone["high"]) == (0.0, 1.0)
    assert (repeated["n"], repeated["mean"]) == (10, 0.5) and 0 < independent["low"] < independent["high"] < 1


def test_layouts_of_a_group_of_many_kinds_are_its_seeds():
    drawn = [
        scored(Case("all pairs", "two_stage", seed, make_pair_scene(kind, seed), kind), similarity=float(seed))
        for seed in range(2)
        for kind in ("man+man", "man+woman", "woman+woman")
    ]
    (row,) = report.summarize(drawn)
    assert (row["layouts"], row["scenes"], row["pictures"]) == (2, 6, 6)
    assert row["similarity"] == {"n": 6, "mean": 0.5, "low": 0.0, "high": 1.0}


def test_share_has_wilsons_interval():
    """Wilson's interval of 9 of 10 is 0.5958 to 0.9821 (Wilson 1927); it is no point where all are right."""
    assert report.share_interval(9, 10) == {"right": 9, "n": 10, "mean": 0.9, "low": 0.5958, "high": 0.9821}
    assert report.share_interval(10, 10)["low"] < 0.75
