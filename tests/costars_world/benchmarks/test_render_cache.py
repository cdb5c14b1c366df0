"""Cases are rendered once, and failures are stored."""

import json

import numpy as np
import pytest

from costars import open_studio
from costars.types import RegionError
from costars_world.benchmarks.cases import BENCHMARKS, PAIRS, Case, make_pair_scene
from costars_world.benchmarks.render_cache import RenderCache
from costars_world.benchmarks.score import load_scorer


@pytest.fixture(scope="module")
def studio():
    return open_studio("cpu", "float32")


@pytest.fixture(scope="module")
def scorer(studio):
    return load_scorer(studio.settings.builtin)


def test_two_stage_keeps_identities_better_than_multi_lora(studio, scorer, tmp_path):
    """The first scene of each kind of pair.

    Over the benchmark's 30 layouts two_stage is ahead by 0.38 (standard deviation 0.25); on these five by 0.33, one
    standard error of five more than 0.22. Without noise blending it is behind.
    """
    variants = ("two_stage", "multi_lora")
    cases = [c for c in BENCHMARKS["identity"](1) if c.variant in variants]
    assert sorted((c.group, c.variant) for c in cases) == sorted((kind, v) for kind in PAIRS for v in variants)
    similarities = {variant: [] for variant in variants}
    for case, facts in RenderCache(studio, scorer, tmp_path).render_cases(cases):
        assert not facts["failed"]
        similarities[case.variant].append(facts["means"]["similarity"])
    ahead = np.subtract(similarities["two_stage"], similarities["multi_lora"])
    assert ahead.mean() >= 0.22 and np.sum(ahead > 0) >= 4


def test_interrupted_run_continues_without_rendering_again(short_identity, studio, scorer, tmp_path, monkeypatch):
    cases = list(BENCHMARKS["identity"](2))
    cache = RenderCache(studio, scorer, tmp_path)
    iterator = cache.render_cases(cases)
    first = [next(iterator) for _ in range(3)]
    del iterator
    rendered = []
    render = studio.render

    def counted(source):
        rendered.append(source)
        return render(source)

    monkeypatch.setattr(studio, "render", counted)
    again = list(RenderCache(studio, scorer, tmp_path).render_cases(cases))
    assert again[:3] == [(c, json.loads(json.dumps(f))) for c, f in first]
    assert len(rendered) <= 3
    rendered.clear()
    assert list(RenderCache(studio, scorer, tmp_path).render_cases(cases)) == again
    assert not rendered


def test_failure_of_one_variant_does_not_affect_others(studio, scorer, tmp_path, monkeypatch):
    render = studio.render

    def fails_grown(source):
        if source.regions["bo"].area > plan.regions["bo"].area:
            raise RegionError("bo's mask fills no cell")
        return render(source)

    monkeypatch.setattr(studio, "render", fails_grown)
    scene = make_pair_scene("man+woman", 2, steps=4)
    plan = studio.plan(scene)
    cases = [Case("all", "grown", 2, scene, grown_px=6), Case("all", "plain", 2, scene)]
    grown, plain = (facts for _, facts in RenderCache(studio, scorer, tmp_path).render_cases(cases))
    assert grown["failed"] == "bo's mask fills no cell" and grown["grown_px"] == 6
    assert plain["failed"] is None and plain["scene"]["start"] == 0.12


def test_failing_layout_is_planned_once(studio, scorer, tmp_path, monkeypatch):
    planned = []

    def fails(scene):
        planned.append(scene)
        raise RegionError("the layout does not show bo")

    monkeypatch.setattr(studio, "plan", fails)
    scene = make_pair_scene("man+man", 0)
    cases = [Case("man+man", "a", 0, scene), Case("man+man", "b", 0, scene.model_copy(update={"start": 0.0}))]
    facts = [f for _, f in RenderCache(studio, scorer, tmp_path).render_cases(cases)]
    assert all(f["failed"] for f in facts)
    assert len(planned) == 1
