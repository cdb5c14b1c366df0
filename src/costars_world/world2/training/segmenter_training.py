"""Training the segmenter on rendered truth, and how right it is on held-out pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from costars_world.world2.training.batches import Rendered, held_out_slots, pieces, to_pixels
from costars_world.world2.training.clock import Span
from costars_world.world2.training.optimizer import FlatTraining, Rates
from costars_world.world2.training.segmenter import OFFSET_PX, FoundFigure, SegmenterNet, find_figures
from costars_world.world2.training.store import Store
from costars_world.world2.training.world import World

SMALLEST_SEEN_PX = 60  # figures of which less is seen do not count in the figures below
RATES = Rates(learning_rate=2e-3, warmup_steps=100)


@dataclass(frozen=True)
class SegmenterRecipe:
    """Weights of the losses and rates; batch counts square pictures."""

    rates: Rates = RATES
    batch: int = 48
    way_weight: float = 1.0
    depth_weight: float = 0.3


def train_segmenter(
    net: SegmenterNet,
    rendered: Rendered,
    recipe: SegmenterRecipe,
    span: Span,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[int, Tensor], None] = lambda step, loss: None,
) -> int:
    """Train until the span is over, then leave the running mean in place as float32; returns the pictures seen."""
    training = FlatTraining(net.to(device).train(), recipe.rates, dtype)
    rng, seen = np.random.default_rng(3), 0
    while not span.over():
        shape, slots = rendered.draw(rng, recipe.batch)
        images = to_pixels(rendered.images(shape, slots).to(device), torch.float32)
        truth = _targets(rendered.store, slots, shape, rendered, device)
        loss = _loss(net(wear(images).to(dtype)), truth, recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        training.step(span.progress())
        seen += len(slots)
        report(training.step_count, loss)
    net.float()
    training.put(net)
    net.eval()
    return seen


@dataclass(frozen=True)
class Truth:
    """Per pixel: class (n, h, w; 0 is the place), way to the middle (n, 2, h, w), depth (n, h, w) in [0, 1]."""

    classes: Tensor
    way: Tensor
    depth: Tensor


def _targets(store: Store, slots: NDArray[np.int64], shape: int, rendered: Rendered, device: torch.device) -> Truth:
    labels = torch.from_numpy(store.labels[shape][rendered.plan.rows[slots]]).to(device).long()
    classes, depths = store.classes[slots], store.depths[slots]
    figures = (classes >= 0).sum(axis=1, keepdims=True)
    tables = (
        np.pad(classes + 1, ((0, 0), (1, 0))).astype(np.int64),
        np.pad(depths / np.maximum(figures - 1, 1), ((0, 0), (1, 0))).astype(np.float32),
        np.pad(store.centres[slots], ((0, 0), (1, 0), (0, 0))).astype(np.float32),
    )
    per_class, per_depth, per_centre = (torch.from_numpy(t).to(device) for t in tables)
    picks = (torch.arange(len(slots), device=device)[:, None, None], labels)
    height, width = labels.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    way = (per_centre[picks].permute(0, 3, 1, 2) - torch.stack([x, y]).float()) / OFFSET_PX
    return Truth(per_class[picks], way, per_depth[picks])


def _loss(outputs: tuple[Tensor, Tensor, Tensor], truth: Truth, recipe: SegmenterRecipe) -> Tensor:
    scores, way, depth = outputs
    inside = (truth.classes > 0).float()
    share = inside.mean().clamp_min(1e-3)
    off = ((way - truth.way).abs().sum(dim=1) * inside).mean() / share
    deep = ((depth - truth.depth).abs() * inside).mean() / share
    return cross_entropy(scores, truth.classes) + recipe.way_weight * off + recipe.depth_weight * deep


def wear(images: Tensor) -> Tensor:
    """(n, 3, h, w) with blur, noise and a shift of colour at random, because drawn pictures are less clean."""
    count, device = len(images), images.device
    share = 0.35 + 0.45 * float(torch.rand(()))
    small = interpolate(images, scale_factor=share, mode="area")
    blurred = interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)
    images = torch.where(torch.rand((count, 1, 1, 1), device=device) < 0.4, blurred, images)
    gain = 1 + 0.12 * torch.randn((count, 3, 1, 1), device=device)
    shift = 0.08 * torch.randn((count, 3, 1, 1), device=device)
    noise = torch.randn_like(images) * 0.06 * torch.rand((count, 1, 1, 1), device=device)
    return images * gain + shift + noise


@torch.no_grad()
def measure_segmenter(net: SegmenterNet, rendered: Rendered, world: World, most: int = 500) -> dict[str, float]:
    """On held-out pictures: mean IoU of visible figures with their best regions, shares of right counts and classes."""
    store, plan = rendered.store, rendered.plan
    device = next(net.parameters()).device
    overlaps: list[float] = []
    counts = right = pictures = 0
    for shape, slots in enumerate(held_out_slots(plan, store)):
        for part in pieces(slots[:most], 16):
            outputs = net(to_pixels(rendered.images(shape, part).to(device)))
            for i, slot in enumerate(part):
                found = find_figures((outputs[0][i], outputs[1][i], outputs[2][i]), world.classes, world.objects)
                labels = store.labels[shape][plan.rows[slot]]
                seen = [k for k in range(8) if (labels == k + 1).sum() >= SMALLEST_SEEN_PX]
                pictures += 1
                counts += len(found) == len(seen)
                for k in seen:
                    overlap, best = _best(labels == k + 1, found)
                    overlaps.append(overlap)
                    right += best is not None and best.class_name == world.classes[store.classes[slot, k]]
    return {
        "pictures": pictures,
        "mean_iou": float(np.mean(overlaps)) if overlaps else 0.0,
        "count_right": counts / max(1, pictures),
        "class_right": right / max(1, len(overlaps)),
    }


def _best(mask: NDArray[np.bool_], found: list[FoundFigure]) -> tuple[float, FoundFigure | None]:
    scored = [(float((mask & f.mask).sum() / (mask | f.mask).sum()), f) for f in found]
    return max(scored, key=lambda s: s[0], default=(0.0, None))
