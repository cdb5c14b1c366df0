"""Captions of World 2 agree with what is drawn, fit the context, and hold known words only."""

from __future__ import annotations

import numpy as np

from costars_world.world2.render.captions import MAX_TOKENS, tokens, vocabulary
from costars_world.world2.render.layout import CONTACT
from costars_world.world2.render.places import PLACES
from costars_world.world2.render.scene import HELD_OUT_STYLES, SHAPES, STYLES, RenderedScene, sample_scene
from costars_world.world2.render.styles import STYLE_PHRASES

_STYLES = (*STYLES, *HELD_OUT_STYLES)
_SCENES = [sample_scene(seed, size_px=SHAPES[seed % 4], style=_STYLES[seed % 6], truth=False) for seed in range(2000)]
_STATED = {"sitting": "sitting", "waving": "waving", "jumping": "jumping", "arms raised": "arms raised"}


def _middle(scene: RenderedScene, i: int) -> float:
    """Where a figure stands, px from the left: the middle of its full mask."""
    columns = np.nonzero(scene.figures[i].full_mask)[1]
    return float(columns.min() + columns.max()) / 2


def test_vocabulary_covers_captions() -> None:
    words = set(vocabulary())
    for scene in _SCENES:
        assert set(tokens(scene.caption)) <= words
        assert "".join(tokens(scene.caption)) == scene.caption.replace(" ", "")


def test_captions_fit_the_context() -> None:
    assert max(len(tokens(scene.caption)) for scene in _SCENES) <= MAX_TOKENS


def test_captions_name_classes_in_order() -> None:
    for scene in _SCENES:
        at = -1
        for figure in scene.figures:
            at = scene.caption.find(f" {figure.identity.class_name}", at + 1)
            assert at >= 0 or scene.caption.startswith(figure.identity.class_name)


def test_captions_state_place_and_style() -> None:
    for scene in _SCENES:
        assert scene.caption.endswith(PLACES[scene.place].phrase)
        assert scene.caption.startswith(STYLE_PHRASES[scene.style])


def test_captions_state_every_action() -> None:
    for scene in _SCENES:
        for action, words in _STATED.items():
            done = sum(figure.action == action for figure in scene.figures)
            assert scene.caption.count(words) == done


def test_captions_state_the_relation() -> None:
    for scene in _SCENES:
        if scene.relation != "alone":
            assert f" {scene.relation} " in scene.caption


def test_left_and_right_agree_with_the_picture() -> None:
    for relation, sign in (("to the left of", 1), ("to the right of", -1)):
        for seed in range(40):
            scene = sample_scene(seed, relation=relation, count=2)
            assert (_middle(scene, 1) - _middle(scene, 0)) * sign > 0


def test_lists_run_from_left_to_right() -> None:
    for seed in range(60):
        scene = sample_scene(seed, relation="and", count=4, size_px=(256, 128))
        middles = [_middle(scene, i) for i in range(4)]
        assert middles == sorted(middles)


def test_in_front_of_and_behind_agree_with_depth() -> None:
    for scene in _SCENES:
        if scene.relation == "in front of":
            assert scene.figures[0].depth == 0
        elif scene.relation == "behind":
            assert scene.figures[0].depth == 1


def test_overlap_shows_who_is_in_front() -> None:
    for relation, front in (("in front of", 0), ("behind", 1)):
        for seed in range(30):
            scene = sample_scene(seed, relation=relation, count=2)
            near = scene.figures[front]
            assert (near.visible_mask == near.full_mask).all()


def test_contact_captions_need_contact() -> None:
    for scene in _SCENES:
        touching = any(figure.touches for figure in scene.figures)
        assert touching == (scene.relation in CONTACT)


def test_class_words_alone_without_detail() -> None:
    for seed in range(30):
        scene = sample_scene(seed, detail=0.0, action="standing", relation="next to", place="park", truth=False)
        a, b = (figure.identity.class_name for figure in scene.figures)
        assert scene.caption == f"a {a} next to a {b} in a park"
