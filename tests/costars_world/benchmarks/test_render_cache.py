"""The claims' harness: same scenes for every variant, nothing drawn twice, honest tables."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from costars import open_studio
from costars.errors import RegionError
from costars.types import Layout, Picture, Plan, Region
from costars_world.benchmarks import __main__ as command
from costars_world.benchmarks import base, report
from costars_world.benchmarks.cases import CLAIMS, PAIRS, STARTS, Case, pair
from costars_world.benchmarks.draw import Easel
from costars_world.benchmarks.score import MemberScore, means, order_kept, place_of, shipped_scorer
from costars_world.render.identity import identity_from_seed
from costars_world.render.portraits import SEED
from costars_world.render.world import Spot, draw, sample_picture


@pytest.fixture(scope="module")
def studio():
    return open_studio("cpu", "float32")


@pytest.fixture(scope="module")
def scorer(studio):
    return shipped_scorer(studio.settings.builtin)


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_variant_of_a_group_has_the_same_seeds(claim):
    seeds: dict[str, dict[str, set[int]]] = {}
    for case in CLAIMS[claim](3):
        seeds.setdefault(case.group + case.kind, {}).setdefault(case.variant, set()).add(case.seed)
        assert place_of(case.scene.prompt)
    for variants in seeds.values():
        assert all(found == {0, 1, 2} for found in variants.values())


def test_the_ablation_differs_from_the_whole_method_in_one_thing_each():
    cases = [c for c in CLAIMS["ablation"](1) if c.kind == "man+woman"]
    assert len({(c.scene.model_dump_json(), c.grown_px) for c in cases}) == len(cases) == 11
    whole = cases[0].scene.method.model_dump()
    changed = {c.variant: [k for k, v in c.scene.method.model_dump().items() if v != whole[k]] for c in cases}
    assert changed.pop("words everywhere (OMG)") == ["own_words_share", "other_words_share"]  # one thing in two fields
    methods = {c.variant: c.scene.method for c in cases}
    assert {variant: len(keys) for variant, keys in changed.items()} == {
        variant: int(methods[variant] != cases[0].scene.method) for variant in changed
    }
    assert sum(map(len, changed.values())) == 6
    prompts = {c.variant: [m.prompt for m in c.scene.cast.values()] for c in cases if "prompts" in c.variant}
    assert prompts == {
        "members' prompts: alone": ["a bo man in a park", "an ana woman in a park"],
        "members' prompts: every trigger": ["a bo man in front of an ana woman in a park"] * 2,
    }


def test_the_identity_claim_draws_every_kind_of_pair_both_ways_and_each_member_alone():
    cases = [c for c in CLAIMS["identity"](2) if c.group == "man+woman" and c.seed == 1]
    assert [(c.variant, len(c.scene.cast)) for c in cases] == [
        ("two_stage", 2),
        ("multi_lora", 2),
        ("alone", 1),
        ("in company", 1),
        ("alone", 1),
        ("in company", 1),
    ]
    assert cases[3].scene.prompt == "{dan} in front of a woman on a beach"
    assert cases[0].scene.prompt == cases[1].scene.prompt
    assert {c.scene.seed for c in cases} == {1}
    assert {c.group for c in CLAIMS["identity"](1)} == set(PAIRS)
    assert {c.scene.start for c in CLAIMS["start"](1)} == set(STARTS)


def truth(name, place="park", seed=0):
    from costars_world.training.concepts import PACK

    return sample_picture(SEED - 100 - seed, cast=[PACK[n] for n in name], place=place)


def picture_of(world, names, planned=None):
    """A rendered picture as if it had been drawn: its masks are the layout's, unless others are given."""
    scene = pair("man+woman", 0)
    cast = {name: scene.cast["bo"].model_copy(update={"concept": f"builtin/{name}"}) for name in names}
    scene = scene.model_copy(update={"cast": cast, "prompt": " ".join(f"{{{n}}}" for n in names) + " in a park"})
    regions = {
        name: Region(f.identity.class_name, f.visible_mask.astype(np.float32), 1.0, f.depth)
        for name, f in zip(names, (planned or world).figures, strict=True)
    }
    plan = Plan(scene, Layout(world.image, None, {}, "", 0), regions)
    return Picture(world.image, scene, plan, {}, {}, {}, {})


def members(scorer, picture):
    return scorer.members(picture, scorer.segmenter.regions(picture.image))


def test_a_render_of_the_cast_itself_scores_full_marks(scorer):
    names = ("bo", "ana")
    world = truth(names)
    scores = members(scorer, picture_of(world, names))
    assert all(s.found and s.first for s in scores.values())
    assert means(scores)["similarity"] > 0.7
    assert means(scores)["attributes"] > 0.9
    assert means(scores)["iou"] > 0.8
    assert means(scores)["light"] < 0.1
    assert all(order_kept(picture_of(world, names), scorer.segmenter.regions(world.image)))


def test_two_members_in_each_others_place_are_not_themselves(scorer):
    world = truth(("ana", "cleo"))
    swapped = members(scorer, picture_of(world, ("cleo", "ana")))
    assert not any(s.first for s in swapped.values())
    assert means(swapped)["similarity"] < 0.5


def test_a_member_that_is_not_drawn_scores_zero(scorer):
    one, two = truth(("ana",), seed=1), truth(("bo", "ana"))
    alone = picture_of(two, ("bo", "ana"))
    alone = Picture(one.image, alone.scene, alone.plan, {}, {}, {}, {})
    scores = members(scorer, alone)
    missing = [s for s in scores.values() if not s.found]
    assert missing and all(s == MemberScore(False, 0.0, 0.0, False, 0.0, None) for s in missing)


def drawn_once(case, **facts):
    base = {"similarity": 0.5, "attributes": 0.5, "first": 1.0, "iou": None, "light": 0.1}
    return case, {"failed": None, "means": base | facts, "order_kept": [True], "rows": {"stage1": 100}, "seconds": {}}


def case(variant, seed, group="man+man"):
    return Case(group, variant, seed, pair("man+man", seed))


def test_a_seed_counts_only_where_every_variant_has_a_picture():
    failed = (case("two_stage", 1), {"failed": "the layout does not show bo"})
    drawn = [
        drawn_once(case("two_stage", 0), similarity=0.9, iou=0.8),
        drawn_once(case("multi_lora", 0), similarity=0.3),
        failed,
        drawn_once(case("multi_lora", 1), similarity=1.0),
    ]
    two, multi = report.table(drawn)
    assert (two["scenes"], multi["scenes"]) == (1, 1)
    assert two["similarity"]["mean"] == 0.9 and multi["similarity"]["mean"] == 0.3
    assert two["iou"]["mean"] == 0.8 and multi["iou"] is None
    assert "| man+man | multi_lora | 1 | 0.30 (0.30 to 0.30)" in report.markdown([two, multi])
    assert "change" not in two


def test_a_change_is_told_scene_by_scene_against_the_baseline():
    drawn = [
        drawn_once(case(variant, seed), similarity=value)
        for seed, values in enumerate(({"alone": 0.9, "joint": 0.7}, {"alone": 0.5, "joint": 0.1}))
        for variant, value in values.items()
    ]
    alone, joint = report.table(drawn, "alone")
    assert alone["change"] is None and joint["change"] == {"mean": -0.3, "low": -0.4, "high": -0.2}


def test_a_layout_that_failed_takes_the_same_scene_from_every_variant_and_leaves_the_other_kinds():
    def of(kind, variant, **facts):
        made, told = drawn_once(Case("all pairs", variant, 0, pair(kind, 0), kind))
        return made, told | facts

    drawn = [
        of("man+man", "two_stage", failed="nobody"),
        of("man+man", "alone"),
        of("man+woman", "two_stage"),
        of("man+woman", "alone"),
    ]
    assert [(row["scenes"], row["pictures"]) for row in report.table(drawn)] == [(1, 1), (1, 1)]


def test_the_interval_holds_the_mean_and_narrows_with_more_values():
    few, many = report.interval([0.0, 1.0] * 5), report.interval([0.0, 1.0] * 200)
    assert few["low"] < few["mean"] == 0.5 < few["high"]
    assert many["high"] - many["low"] < 0.5 * (few["high"] - few["low"])
    assert report.interval([]) is None


@pytest.mark.timeout(600)
def test_by_two_stages_members_are_themselves_more_than_with_all_adapters_at_once(studio, scorer, tmp_path):
    cases = [c for c in CLAIMS["identity"](2) if c.seed == 1 and len(c.scene.cast) == 2]  # every kind of pair once
    alike = {"two_stage": [], "multi_lora": []}
    for case, facts in Easel(studio, scorer, tmp_path).drawn(cases):
        assert not facts["failed"]
        alike[case.variant].append(facts["means"]["similarity"])
    assert len(alike["two_stage"]) == 5
    assert np.mean(alike["two_stage"]) >= 0.3 + np.mean(alike["multi_lora"])


@pytest.fixture
def brief(monkeypatch):
    """One pair kind, one seed, twelve steps."""

    def few(seeds):
        for seed in range(2, 2 + seeds):
            scene = pair("man+woman", seed, steps=12)
            yield Case("man+woman", "two_stage", seed, scene)
            yield Case("man+woman", "early", seed, scene.model_copy(update={"start": 0.0}))
            yield Case(
                "man+woman", "multi_lora", seed, pair("man+woman", seed, steps=12, method={"name": "multi_lora"})
            )

    monkeypatch.setitem(CLAIMS, "identity", few)


def test_a_run_that_was_killed_goes_on_where_it_was(brief, studio, scorer, tmp_path, monkeypatch):
    cases = list(CLAIMS["identity"](2))
    easel = Easel(studio, scorer, tmp_path)
    iterator = easel.drawn(cases)
    first = [next(iterator) for _ in range(3)]
    del iterator
    rendered = []
    render = studio.render

    def counted(what, base=None):
        rendered.append(what)
        return render(what, base)

    monkeypatch.setattr(studio, "render", counted)
    again = list(Easel(studio, scorer, tmp_path).drawn(cases))
    assert again[:3] == [(c, json.loads(json.dumps(f))) for c, f in first]
    assert len(rendered) <= 3
    rendered.clear()
    assert list(Easel(studio, scorer, tmp_path).drawn(cases)) == again
    assert not rendered


def test_a_variant_that_fails_by_itself_does_not_stand_for_the_others(studio, scorer, tmp_path, monkeypatch):
    render = studio.render

    def fails_grown(what, base=None):
        if what.regions["bo"].area > plan.regions["bo"].area:
            raise RegionError("bo's mask fills no cell")
        return render(what, base)

    monkeypatch.setattr(studio, "render", fails_grown)
    scene = pair("man+woman", 2, steps=4)
    plan = studio.plan(scene)
    cases = [Case("all", "grown", 2, scene, grown_px=6), Case("all", "plain", 2, scene)]
    grown, plain = (facts for _, facts in Easel(studio, scorer, tmp_path).drawn(cases))
    assert grown["failed"] == "bo's mask fills no cell" and grown["grown_px"] == 6
    assert plain["failed"] is None and plain["scene"]["start"] == 0.12


def test_a_layout_that_fails_is_drawn_once_and_told(studio, scorer, tmp_path, monkeypatch):
    planned = []

    def fails(scene, base=None):
        planned.append(scene)
        raise RegionError("the layout does not show bo")

    monkeypatch.setattr(studio, "plan", fails)
    scene = pair("man+man", 0)
    cases = [Case("man+man", "a", 0, scene), Case("man+man", "b", 0, scene.model_copy(update={"start": 0.0}))]
    facts = [f for _, f in Easel(studio, scorer, tmp_path).drawn(cases)]
    assert all(f["failed"] for f in facts)
    assert len(planned) == 1


def test_the_command_writes_table_plot_and_sheet(brief, tmp_path, capsys):
    command.main(["identity", "--out", str(tmp_path), "--seeds", "1", "--device", "cpu"])
    assert "| man+woman | two_stage |" in capsys.readouterr().out
    told = json.loads((tmp_path / "identity.json").read_text())
    assert told["pictures"] == 3 and [row["variant"] for row in told["rows"]] == ["two_stage", "early", "multi_lora"]
    for name in ("identity.png", "identity-sheet.png"):
        with Image.open(tmp_path / name) as image:
            assert image.size[0] > 256


@pytest.mark.parametrize("arguments", [["identity", "--seeds", "0"], ["nothing"]])
def test_bad_input_is_refused(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([*arguments, "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert capsys.readouterr().err


def test_a_place_is_known_by_its_background():
    places = base.PlaceSense()
    for seed in range(40):
        world = sample_picture(seed)
        regions = [Region("", f.visible_mask.astype(np.float32), 1.0, 0) for f in world.figures]
        assert places(world.image, regions) == world.place


def test_renders_are_judged_as_their_prompts_say(scorer):
    places, right = base.PlaceSense(), []
    for seed in range(20):
        front = seed % 2 == 0
        cast = [identity_from_seed(seed, "man"), identity_from_seed(seed, "dog")]
        feet, depths = ((120, 110), [0, 1]) if front else ((110, 120), [1, 0])
        spots = [Spot(50, feet[0], 1.0), Spot(78, feet[1], 1.0)]
        image, _ = draw(random.Random(seed), cast, "beach", spots, depths)
        prompt = base.Prompt(("man", "dog"), base.RELATIONS[0 if front else 1], "beach")
        right.append(base.judged(image, prompt, scorer, places))
    assert all(r["classes"] and r["place"] and r["count"] for r in right)
    assert np.mean([r["depth"] for r in right]) > 0.9
    empty, _ = draw(random.Random(0), [], "park", [], [])
    told = base.judged(empty, prompt, scorer, places)
    assert told == {"classes": False, "count": False, "place": False, "depth": None}


def test_the_prompts_are_the_same_every_time_and_fit_the_claim():
    once = list(base.prompts())
    assert once == list(base.prompts())
    assert [len(p.classes) for p in once[:200]] == [2] * 200
    assert {len(p.classes) for p in once[200:]} == {3, 4, 5} and len(once) == 300
    assert base.Prompt(("man", "cat", "dog"), "", "snow").text == "a man, a cat and a dog in the snow"
    assert base.Prompt(("man", "cat"), "behind", "snow").text == "a man behind a cat in the snow"


def test_shares_leave_out_what_cannot_be_told():
    pair_prompt, crowd = base.Prompt(("man", "cat"), "behind", "snow"), base.Prompt(("man",) * 3, "", "snow")
    yes = {"classes": True, "count": True, "place": True, "depth": True}
    entries = [
        (pair_prompt, yes),
        (pair_prompt, yes | {"depth": None, "classes": False}),
        (crowd, yes | {"depth": None}),
    ]
    told = base.shares(entries)
    assert told["two figures"] == {"classes": 0.5, "count": 1.0, "place": 1.0, "depth": 1.0}
    assert told["three to five"] == {"classes": 1.0, "count": 1.0, "place": 1.0}
