"""Scores of the base model's images, on renders."""

import random

import numpy as np
import pytest

from costars import open_studio
from costars.types import Region
from costars_world.benchmarks import base
from costars_world.benchmarks.score import load_scorer
from costars_world.render.identity import identity_from_seed
from costars_world.render.world import Spot, draw_scene, sample_picture


@pytest.fixture(scope="module")
def studio():
    return open_studio("cpu", "float32")


@pytest.fixture(scope="module")
def scorer(studio):
    return load_scorer(studio.settings.builtin)


def test_places_are_classified_by_background():
    places = base.PlaceClassifier()
    for seed in range(40):
        world = sample_picture(seed)
        regions = [Region("", f.visible_mask.astype(np.float32), 1.0, 0) for f in world.figures]
        assert places(world.image, regions) == world.place


def test_renders_score_as_their_prompts(scorer):
    places, right = base.PlaceClassifier(), []
    for seed in range(20):
        front = seed % 2 == 0
        cast = [identity_from_seed(seed, "man"), identity_from_seed(seed, "dog")]
        feet, depths = ((120, 110), [0, 1]) if front else ((110, 120), [1, 0])
        spots = [Spot(50, feet[0], 1.0), Spot(78, feet[1], 1.0)]
        image, _ = draw_scene(random.Random(seed), cast, "beach", spots, depths)
        prompt = base.Prompt(("man", "dog"), base.RELATIONS[0 if front else 1], "beach")
        right.append(base.score_image(image, prompt, scorer, places))
    assert all(r["classes"] and r["place"] and r["count"] for r in right)
    assert np.mean([r["depth"] for r in right]) > 0.9
    empty, _ = draw_scene(random.Random(0), [], "park", [], [])
    scores = base.score_image(empty, prompt, scorer, places)
    assert scores == {"classes": False, "count": False, "place": False, "depth": None}


def test_prompts_are_reproducible():
    once = list(base.make_prompts())
    assert once == list(base.make_prompts())
    assert [len(p.classes) for p in once[:200]] == [2] * 200
    assert {len(p.classes) for p in once[200:]} == {3, 4, 5} and len(once) == 300
    assert base.Prompt(("man", "cat", "dog"), "", "snow").text == "a man, a cat and a dog in the snow"
    assert base.Prompt(("man", "cat"), "behind", "snow").text == "a man behind a cat in the snow"


def test_undetermined_depth_is_left_out():
    pair_prompt, crowd = base.Prompt(("man", "cat"), "behind", "snow"), base.Prompt(("man",) * 3, "", "snow")
    yes = {"classes": True, "count": True, "place": True, "depth": True}
    entries = [
        (pair_prompt, yes),
        (pair_prompt, yes | {"depth": None, "classes": False}),
        (crowd, yes | {"depth": None}),
    ]
    shares = base.average_by_group(entries)
    assert shares["two figures"] == {"classes": 0.5, "count": 1.0, "place": 1.0, "depth": 1.0}
    assert shares["three to five"] == {"classes": 1.0, "count": 1.0, "place": 1.0}
