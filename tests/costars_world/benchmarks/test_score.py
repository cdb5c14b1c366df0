"""Scores of members, on renders as generated images."""

import numpy as np
import pytest

from costars import open_studio
from costars.types import Layout, Picture, Plan, Region
from costars_world.benchmarks.cases import make_pair_scene
from costars_world.benchmarks.score import MemberScore, compare_depth_order, load_scorer, mean_scores
from costars_world.render.portraits import PORTRAIT_SEED
from costars_world.render.world import sample_picture
from costars_world.training.concepts import PACK

MISSING = MemberScore(found=False, similarity=0.0, attributes=0.0, first=False, iou=0.0)


@pytest.fixture(scope="module")
def studio():
    return open_studio("cpu", "float32")


@pytest.fixture(scope="module")
def scorer(studio):
    return load_scorer(studio.settings.builtin)


def render_pack(name, place="park", seed=0):
    return sample_picture(PORTRAIT_SEED - 100 - seed, cast=[PACK[n] for n in name], place=place)


def make_picture(world, names, planned=None):
    """A render as if it had been generated; its masks are the layout's, unless others are given."""
    scene = make_pair_scene("man+woman", 0)
    cast = {name: scene.cast["bo"].model_copy(update={"concept": f"builtin/{name}"}) for name in names}
    scene = scene.model_copy(update={"cast": cast, "prompt": " ".join(f"{{{n}}}" for n in names) + " in a park"})
    regions = {
        name: Region(f.identity.class_name, f.visible_mask.astype(np.float32), 1.0, f.depth)
        for name, f in zip(names, (planned or world).figures, strict=True)
    }
    plan = Plan(scene, Layout(world.image, None, {}, "", 0), regions)
    return Picture(world.image, scene, plan, {}, {}, {}, {})


def score(scorer, picture):
    return scorer.score_members(picture, scorer.segmenter.find_regions(picture.image))


def test_render_of_the_cast_scores_high(scorer):
    names = ("bo", "ana")
    world = render_pack(names)
    scores = score(scorer, make_picture(world, names))
    assert all(s.found and s.first for s in scores.values())
    assert mean_scores(scores)["similarity"] > 0.7
    assert mean_scores(scores)["attributes"] > 0.9
    assert mean_scores(scores)["iou"] > 0.8
    assert all(compare_depth_order(make_picture(world, names), scorer.segmenter.find_regions(world.image)))


def test_swapped_members_score_low(scorer):
    world = render_pack(("ana", "cleo"))
    swapped = score(scorer, make_picture(world, ("cleo", "ana")))
    assert not any(s.first for s in swapped.values())
    assert mean_scores(swapped)["similarity"] < 0.5


def test_missing_member_scores_zero(scorer):
    one, two = render_pack(("ana",), seed=1), render_pack(("bo", "ana"))
    alone = make_picture(two, ("bo", "ana"))
    alone = Picture(one.image, alone.scene, alone.plan, {}, {}, {}, {})
    scores = score(scorer, alone)
    missing = [s for s in scores.values() if not s.found]
    assert missing and all(s == MISSING for s in missing)
