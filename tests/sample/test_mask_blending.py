"""Blending: shares of the noise are a partition of one, and the front figure wins."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from costars.sample.mask_blending import add_global_share, blend_noise, make_cell_masks

SIDE = 64
edges = st.tuples(st.integers(0, SIDE), st.integers(0, SIDE)).map(sorted)
boxes = st.tuples(edges, edges)
soft = st.sampled_from([0.0, 0.3, 1.0, 2.5])


def mask_of(box: tuple[list[int], list[int]], value: float = 1.0) -> np.ndarray:
    (left, right), (top, bottom) = box
    mask = np.zeros((SIDE, SIDE), dtype=np.float32)
    mask[top:bottom, left:right] = value
    return mask


@given(st.lists(boxes, max_size=5), soft, st.sampled_from([(8, 8), (4, 16), (16, 4)]))
def test_blending_ones_gives_ones_for_any_masks(drawn, feather_cells, size):
    shares = add_global_share(make_cell_masks([mask_of(b) for b in drawn], size, feather_cells))
    noise = torch.ones(len(drawn) + 1, 2, 4, *size)
    assert torch.allclose(blend_noise(noise, shares), torch.ones(2, 4, *size), atol=1e-6)
    assert shares.min() >= -1e-6


@given(st.lists(boxes, min_size=2, max_size=5))
def test_every_cell_has_one_owner(drawn):
    shares = add_global_share(make_cell_masks([mask_of(b) for b in drawn], (8, 8)))
    assert set(shares.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(shares.sum(dim=0), torch.ones(8, 8))


@given(boxes, boxes)
def test_the_front_figure_keeps_all_its_cells_and_the_other_gets_the_rest(front, back):
    chain_rules = make_cell_masks([mask_of(front), mask_of(back)], (8, 8))
    (front_alone,), (back_alone,) = make_cell_masks([mask_of(front)], (8, 8)), make_cell_masks([mask_of(back)], (8, 8))
    assert torch.equal(chain_rules[0], front_alone)
    assert torch.equal(chain_rules[1], back_alone * (1 - front_alone))


@pytest.mark.parametrize(("columns", "owned"), [(3, 0.0), (4, 1.0), (8, 1.0)])
def test_a_cell_belongs_to_who_covers_at_least_half_of_it(columns, owned):
    share = make_cell_masks([mask_of(([0, columns], [0, 8]))], (8, 8))
    assert share[0, 0, 0] == owned
    assert share.sum() == owned


def test_without_masks_everything_is_the_global_path():
    assert torch.equal(add_global_share(make_cell_masks([], (4, 6))), torch.ones(1, 4, 6))


def test_each_path_has_its_noise_where_its_share_is():
    shares = add_global_share(make_cell_masks([mask_of(([0, 32], [0, 64])), mask_of(([48, 64], [0, 64]))], (8, 8)))
    noise = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1).expand(3, 2, 4, 8, 8)
    assert blend_noise(noise, shares)[0, 0, 0].tolist() == [2, 2, 2, 2, 1, 1, 3, 3]


def test_shares_take_the_type_of_the_noise():
    noise = torch.ones(2, 2, 4, 8, 8, dtype=torch.bfloat16)
    assert (
        blend_noise(noise, add_global_share(make_cell_masks([mask_of(([0, 32], [0, 64]))], (8, 8)))).dtype
        is torch.bfloat16
    )


@pytest.mark.parametrize("feather_cells", [0.5, 1.0])
def test_a_feathered_edge_falls_evenly_on_both_sides(feather_cells):
    (share,) = make_cell_masks([mask_of(([0, 32], [0, 64]))], (16, 16), feather_cells)
    row = share[8]
    assert (row.diff() <= 1e-6).all()
    assert 0.5 < row[7] < 1 and 0 < row[8] < 0.5
    assert torch.allclose(row + row.flip(0), torch.ones(16), atol=1e-5)
    assert row[0] == pytest.approx(1, abs=1e-4) and row[15] == pytest.approx(0, abs=1e-4)


def test_a_wider_feather_reaches_further():
    reach = [
        int((make_cell_masks([mask_of(([0, 32], [0, 64]))], (16, 16), f)[0, 8, 8:] > 0.01).sum())
        for f in (0.0, 0.5, 1.5)
    ]
    assert reach[0] == 0 < reach[1] < reach[2]


def test_masks_that_are_not_to_be_disjoint_sum_their_noise_and_leave_the_global_path_nothing():
    masks = [mask_of(([0, 32], [0, 64])), mask_of(([16, 64], [0, 64]))]
    shares = add_global_share(make_cell_masks(masks, (8, 8), disjoint=False))
    assert shares[:, 0].sum(dim=0).tolist() == [1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    assert not shares[0].any()
