"""A benchmark that takes seconds."""

import pytest

from costars_world.benchmarks.cases import BENCHMARKS, Case, make_pair_scene


@pytest.fixture
def short_identity(monkeypatch):
    """The identity benchmark with one kind of pair and six steps."""

    def cases(seeds):
        for seed in range(2, 2 + seeds):
            scene = make_pair_scene("man+woman", seed, steps=6)
            yield Case("man+woman", "two_stage", seed, scene)
            yield Case("man+woman", "early", seed, scene.model_copy(update={"start": 0.0}))
            yield Case(
                "man+woman",
                "multi_lora",
                seed,
                make_pair_scene("man+woman", seed, steps=6, method={"name": "multi_lora"}),
            )

    monkeypatch.setitem(BENCHMARKS, "identity", cases)
