"""Depth, edge and pose pictures of World 2."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from costars_world.world2.render.scene import SHAPES, sample_scene
from costars_world.world2.render.truth import depth_map, depth_picture, edge_picture, pose_picture


@pytest.mark.parametrize("size_px", SHAPES)
def test_nearer_figures_are_lighter(size_px: tuple[int, int]) -> None:
    for seed in range(15):
        scene = sample_scene(seed, size_px=size_px)
        depth = depth_map(scene)
        assert depth.shape == scene.ids.shape
        assert depth.min() >= 0 and depth.max() <= 1
        values = [float(depth[figure.visible_mask].mean()) for figure in scene.figures]
        ranks = sorted(range(len(values)), key=lambda i: scene.figures[i].depth)
        assert all(values[near] > values[far] for near, far in itertools.pairwise(ranks))


def test_pictures_have_the_size_of_the_scene() -> None:
    scene = sample_scene(2, size_px=(192, 128))
    for picture in (depth_picture(scene), edge_picture(scene.image), pose_picture(scene)):
        assert picture.size == (192, 128)
        assert picture.mode == "RGB"


def test_edges_lie_on_outlines() -> None:
    scene = sample_scene(2, place="park")
    edges = np.asarray(edge_picture(scene.image))[..., 0] > 0
    assert 0.02 < edges.mean() < 0.25


def test_skeletons_lie_on_their_figures() -> None:
    for seed in range(20):
        scene = sample_scene(seed, relation="next to", count=2)
        pose = np.asarray(pose_picture(scene)).max(-1) > 60
        figures = np.zeros_like(pose)
        for figure in scene.figures:
            figures |= figure.full_mask
        if pose.any():
            assert (pose & figures).sum() / pose.sum() > 0.85
