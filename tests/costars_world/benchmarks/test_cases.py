"""The cases of each benchmark."""

import pytest

from costars_world.benchmarks.cases import BENCHMARKS, PAIRS, START_SHARES
from costars_world.benchmarks.score import find_place


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_variants_of_a_group_have_the_same_seeds(benchmark):
    seeds: dict[str, dict[str, set[int]]] = {}
    for case in BENCHMARKS[benchmark](3):
        seeds.setdefault(case.group + case.kind, {}).setdefault(case.variant, set()).add(case.seed)
        assert find_place(case.scene.prompt)
    for variants in seeds.values():
        assert all(found == {0, 1, 2} for found in variants.values())


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
    cases = [c for c in BENCHMARKS["identity"](2) if c.group == "man+woman" and c.seed == 1]
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
    assert {c.group for c in BENCHMARKS["identity"](1)} == set(PAIRS)
    assert {c.scene.start for c in BENCHMARKS["start"](1)} == set(START_SHARES)
