"""The cases of each benchmark."""

import pytest

from costars_world.benchmarks.cases import (
    ADAPTER_WEIGHTS,
    ALONE_SEED,
    BENCHMARKS,
    FIVE_CONCEPTS,
    PAIRS,
    START_SHARES,
    STEPS,
    TUNED,
    TUNED_WEIGHT,
    WEIGHT_SEED,
)
from costars_world.render.backgrounds import PLACES


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_variants_of_a_group_have_the_same_seeds(benchmark):
    seeds: dict[str, dict[str, set[int]]] = {}
    for case in BENCHMARKS[benchmark](6):
        seeds.setdefault(case.group, {}).setdefault(case.variant, set()).add(case.seed)
        assert any(case.scene.prompt.endswith(place.phrase) for place in PLACES.values())
        assert case.scene.steps == (int(case.variant) if benchmark == "steps" else STEPS)
    for variants in seeds.values():
        first, *others = variants.values()
        assert len(first) == (30 if benchmark == "degradation" else 6) and all(found == first for found in others)


@pytest.mark.parametrize(("benchmark", "seeds"), [("ablation", 10), ("start", 10), ("weight", 10), ("degradation", 2)])
def test_layouts_are_independent(benchmark, seeds):
    """One scene for each seed, and all kinds of pair in turn: no two scenes start from the same noise."""
    kinds: dict[int, set[str]] = {}
    for case in BENCHMARKS[benchmark](seeds):
        kinds.setdefault(case.scene.seed, set()).add(case.kind)
    assert [list(of) for of in kinds.values()] == [[kind] for kind in [*PAIRS, *PAIRS]]


def test_adapter_weight_is_chosen_on_seeds_that_nothing_else_uses():
    others = [name for name in BENCHMARKS if name not in ("weight", "steps")]
    used = {case.scene.seed for name in others for case in BENCHMARKS[name](50)}
    assert used == {*range(250), *range(ALONE_SEED, ALONE_SEED + 50)}
    weights = [case for case in BENCHMARKS["weight"](50) if case.seed == WEIGHT_SEED]
    assert not used & {case.scene.seed for case in BENCHMARKS["weight"](50)}
    assert [{m.weight for m in case.scene.cast.values()} for case in weights] == [{w} for w in ADAPTER_WEIGHTS]
    assert {case.scene.method.name for case in weights} == {"multi_lora"} and TUNED_WEIGHT in ADAPTER_WEIGHTS


def test_every_number_of_concepts_shows_each_concept_as_often():
    shown: dict[str, list[str]] = {}
    for case in BENCHMARKS["count"](5):
        shown.setdefault(case.group, []).extend(case.scene.cast)
    assert {k: sorted(names) for k, names in shown.items()} == {str(k): sorted(FIVE_CONCEPTS * k) for k in range(1, 6)}


def test_ablation_variants_change_one_thing_each():
    cases = [c for c in BENCHMARKS["ablation"](1) if c.kind == "man+woman"]
    assert len({(c.scene.model_dump_json(), c.grown_px) for c in cases}) == len(cases) == 11
    whole = cases[0].scene.method.model_dump()
    changed = {c.variant: [k for k, v in c.scene.method.model_dump().items() if v != whole[k]] for c in cases}
    # One change each, in two fields.
    assert changed.pop("words everywhere (OMG)") == ["own_words_share", "other_words_share"]
    assert changed.pop("without layout preservation") == ["cross_replace_steps", "self_replace_steps"]
    methods = {c.variant: c.scene.method for c in cases}
    assert {variant: len(keys) for variant, keys in changed.items()} == {
        variant: int(methods[variant] != cases[0].scene.method) for variant in changed
    }
    assert sum(map(len, changed.values())) == 5
    prompts = {c.variant: [m.prompt for m in c.scene.cast.values()] for c in cases if "prompts" in c.variant}
    assert prompts == {
        "members' prompts: alone": ["a bo man in a park", "an ana woman in a park"],
        "members' prompts: every trigger": ["a bo man in front of an ana woman in a park"] * 2,
    }


def test_identity_cases_cover_pairs_and_single_members():
    cases = [c for c in BENCHMARKS["identity"](2) if c.group == "man+woman" and c.seed == 5]
    assert [(c.variant, len(c.scene.cast)) for c in cases] == [
        ("two_stage", 2),
        ("multi_lora", 2),
        (TUNED, 2),
        ("alone", 1),
        ("in company", 1),
        ("alone", 1),
        ("in company", 1),
    ]
    assert cases[4].scene.prompt == "{dan} behind a woman in a desert"
    assert cases[0].scene.prompt == cases[1].scene.prompt == cases[2].scene.prompt
    weights = [[m.weight for m in c.scene.cast.values()] for c in cases[:3]]
    assert weights == [[1.0, 1.0], [1.0, 1.0], [TUNED_WEIGHT, TUNED_WEIGHT]]
    assert {c.scene.seed for c in cases} == {5}
    assert {c.group for c in BENCHMARKS["identity"](1)} == set(PAIRS)
    assert [c.scene.start for c in BENCHMARKS["start"](1)] == list(START_SHARES)
