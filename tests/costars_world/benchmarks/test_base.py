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
    assert all(r["classes"] and r["place"] and r["count"] and r["side"] is None for r in right)
    assert np.mean([r["depth"] for r in right]) > 0.9
    for relation, is_right in ((base.LEFT, True), (base.RIGHT, False)):  # the man stands at x = 50, the dog at 78
        scores = base.score_image(image, base.Prompt(("man", "dog"), relation, "beach"), scorer, places)
        assert scores["side"] is is_right and scores["depth"] is None
        same_class = base.Prompt(("man", "man"), relation, "beach")
        assert base.score_image(image, same_class, scorer, places)["side"] is None
    prompt = base.Prompt(("man", "dog"), base.BEHIND, "beach")
    empty, _ = draw_scene(random.Random(0), [], "park", [], [])
    scores = base.score_image(empty, prompt, scorer, places)
    assert scores == {"classes": False, "count": False, "place": False, "depth": None, "side": None}


def test_prompts_are_reproducible():
    once = list(base.make_prompts())
    assert once == list(base.make_prompts())
    pairs, groups = once[: base.NUM_PAIRS], once[base.NUM_PAIRS :]
    assert {len(p.classes) for p in pairs} == {2} and {len(p.classes) for p in groups} == {3, 4, 5}
    per_relation = [sum(p.relation == relation for p in pairs) for relation in base.RELATIONS]
    assert set(per_relation) == {base.NUM_PAIRS // len(base.RELATIONS)} and len(groups) == base.NUM_GROUPS
    assert base.Prompt(("man", "cat", "dog"), "", "snow").text == "a man, a cat and a dog in the snow"
    assert base.Prompt(("man", "cat"), "behind", "snow").text == "a man behind a cat in the snow"


def test_shares_say_how_many_prompts_state_and_how_many_were_judged():
    behind, crowd = base.Prompt(("man", "cat"), "behind", "snow"), base.Prompt(("man",) * 3, "", "snow")
    left = base.Prompt(("man", "cat"), "to the left of", "snow")
    yes = {"classes": True, "count": True, "place": True, "depth": None, "side": None}
    entries = [
        (behind, yes | {"depth": True}),
        (behind, yes | {"classes": False}),
        (left, yes | {"side": False}),
        (crowd, yes),
    ]
    pairs, groups = base.count_by_group(entries).values()
    counts = {key: (share["right"], share["n"], share["stated"]) for key, share in pairs.items()}
    assert counts == {
        "classes": (2, 3, 3),
        "count": (3, 3, 3),
        "place": (3, 3, 3),
        "depth": (1, 1, 2),
        "side": (0, 1, 1),
    }
    assert groups.keys() == {"classes", "count", "place"}
