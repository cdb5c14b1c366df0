from __future__ import annotations

import numpy as np

from costars_world.world2.training.plan import HELD_OUT, PLAIN, PORTRAIT, SHAPES, TRAIN_SEED, Counts, make_plan
from costars_world.world2.training.store import DONE


def test_held_out_pictures_stay_when_the_training_pictures_change():
    first, second = (make_plan(Counts(2, 1, 5, 7, 9), 3, offset) for offset in (0, 1000))
    held_out = first.kinds == HELD_OUT
    assert (first.seeds[held_out] == second.seeds[held_out]).all()
    assert (first.seeds[held_out] < TRAIN_SEED).all()
    trained = first.kinds == PLAIN
    assert not set(first.seeds[trained]) & set(second.seeds[trained])


def test_rows_of_a_shape_count_up_and_truth_comes_first():
    plan = make_plan(Counts(2, 1, 5, 7, 30), 3)
    for shape in range(len(SHAPES)):
        assert plan.rows[plan.shapes == shape].tolist() == list(range(plan.shape_count(shape)))
    assert (plan.kinds[: plan.with_truth] != PLAIN).all()


def test_every_slot_is_rendered_with_a_caption_and_a_picture(pictures):
    store, plan = pictures.store, pictures.plan
    assert (store.status == DONE).all()
    for slot in range(plan.count):
        assert store.caption(slot)
        assert store.images[plan.shapes[slot]][plan.rows[slot]].std() > 1


def test_labels_agree_with_the_table_of_figures(pictures):
    store, plan = pictures.store, pictures.plan
    for slot in range(plan.with_truth):
        labels = store.labels[plan.shapes[slot]][plan.rows[slot]]
        present = set(np.unique(labels)) - {0}
        figures = {i + 1 for i in np.flatnonzero(store.classes[slot] >= 0)}
        assert present <= figures
        assert len(figures) == store.figure_counts[slot]


def test_portraits_show_the_identity_of_the_line_up(pictures):
    store, plan = pictures.store, pictures.plan
    portraits = np.flatnonzero(plan.kinds == PORTRAIT)
    assert store.who[portraits, 0].tolist() == list(range(len(pictures.casting.line_up)))
    names = [pictures.world.classes[c] for c in store.classes[portraits, 0]]
    assert names == [who.class_name for who in pictures.casting.line_up]


def test_crops_hold_the_mask_of_what_is_judged(pictures):
    rows, places = np.nonzero(pictures.store.judged)
    masks = pictures.store.crops[rows, places][..., 3]
    assert len(rows) > 10
    assert (masks.reshape(len(rows), -1).max(axis=1) == 255).all()
