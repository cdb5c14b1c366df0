from __future__ import annotations

import numpy as np
import torch

from costars_world.world2.training.batches import Rendered
from costars_world.world2.training.clock import Clock, Span
from costars_world.world2.training.judge import build_judge, score_columns
from costars_world.world2.training.judge_training import JudgeRecipe, measure_judge, train_judge
from costars_world.world2.training.segmenter import OFFSET_PX, SegmenterNet, find_figures
from costars_world.world2.training.segmenter_training import SegmenterRecipe, measure_segmenter, train_segmenter

CPU = torch.device("cpu")


def _few_steps(monkeypatch, count: int) -> Span:
    steps = iter([False] * count + [True])
    monkeypatch.setattr(Span, "over", lambda self: next(steps))
    monkeypatch.setattr(Span, "progress", lambda self: 0.1)
    return Span(Clock(0.0, 1.0), 0.0, 1.0)


def test_right_outputs_give_the_right_figures():
    classes, objects = ("man", "dog", "ball"), ("ball",)
    labels = np.zeros((64, 96), dtype=int)
    boxes = {1: (10, 50, 10, 30), 2: (20, 60, 50, 80), 3: (30, 40, 16, 26)}
    scores = torch.full((4, 64, 96), -5.0)
    way, depth = torch.zeros(2, 64, 96), torch.zeros(64, 96)
    for k, (top, bottom, left, right) in boxes.items():
        labels[top:bottom, left:right] = k
    for k, (top, bottom, left, right) in boxes.items():
        mask = torch.from_numpy(labels == k)
        y, x = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
        way[0][mask] = (((left + right) / 2 - x) / OFFSET_PX)[mask]
        way[1][mask] = (((top + bottom) / 2 - y) / OFFSET_PX)[mask]
        depth[mask] = k / 4
        scores[k][mask] = 5.0
    scores[0][torch.from_numpy(labels == 0)] = 5.0
    found = find_figures((scores, way, depth), classes, objects)
    assert [f.class_name for f in found] == ["man", "dog", "ball"]
    assert all((f.mask == (labels == k)).all() for k, f in enumerate(found, start=1))


def test_the_segmenter_trains_and_is_measured_on_every_shape(pictures, monkeypatch):
    net = SegmenterNet(len(pictures.world.classes))
    rendered = Rendered(pictures.plan, pictures.store, with_truth=True)
    span = _few_steps(monkeypatch, 3)
    assert train_segmenter(net, rendered, SegmenterRecipe(batch=2), span, CPU, torch.float32) >= 3
    figures = measure_segmenter(net, rendered, pictures.world)
    assert figures["pictures"] == 10
    assert 0 <= figures["mean_iou"] <= 1


def test_the_judge_trains_and_is_measured(pictures, monkeypatch):
    net = build_judge(pictures.world.attributes)
    rendered = Rendered(pictures.plan, pictures.store, with_truth=True)
    span, identities = _few_steps(monkeypatch, 3), len(pictures.casting.pool)
    recipe = JudgeRecipe(batch=8)
    assert train_judge(net, rendered, pictures.world, identities, recipe, span, CPU, torch.float32) == 24
    figures = measure_judge(net, rendered, pictures.world, line_up=2)
    assert figures["figures"] > 5
    assert 0 < figures["found_first"] <= 1


def test_columns_of_the_scores_follow_each_other():
    columns = score_columns({"man": {"hat": ("none", "cap")}, "dog": {"fur": ("red", "black", "white")}})
    assert columns == {("man", "hat"): slice(2, 4), ("dog", "fur"): slice(4, 7)}
