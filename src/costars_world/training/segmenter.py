"""Trains the built-in segmenter on rendered pictures."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from costars.builtin.segmenter import OFFSET_PX, SegmenterNet, WorldSegmenter
from costars.segment.overlap import mask_iou
from costars_world.render.backgrounds import PLACES
from costars_world.render.identity import CLASSES
from costars_world.render.world import draw_scene, sample_picture
from costars_world.training import loop
from costars_world.training.dataset import TRAIN_SEED, RenderedDataset
from costars_world.training.vae import images_to_tensor

RECIPE = loop.Recipe(steps=3200, batch_size=12, learning_rate=2e-3, warmup_steps=100, decay_share=0.4)
OFFSET_WEIGHT = 1.0
DEPTH_WEIGHT = 0.3
NUM_EMPTY = 700  # extra pictures without a figure, because a layout may show none
EMPTY_SHARE = 0.08  # share of each batch, on average


def train(
    net: SegmenterNet,
    data: RenderedDataset,
    options: loop.RunOptions,
) -> Iterator[tuple[loop.Run, loop.Progress]]:
    """Train on pictures with random blur, noise and colour changes, as generated images have."""
    device, batch_size = options.device, options.recipe.batch_size
    net.to(device).train()
    run = loop.start(net, options)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    classes, depths, centres = _targets_per_label(data)
    empty = torch.from_numpy(np.stack([render_empty_place(TRAIN_SEED + i) for i in range(NUM_EMPTY)]))

    def compute_loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(data), (batch_size,), generator=generator)
        pictures, label = images[index].clone(), labels[index].long()
        is_empty = torch.rand(batch_size, generator=generator) < EMPTY_SHARE
        pictures[is_empty] = empty[torch.randint(NUM_EMPTY, (int(is_empty.sum()),), generator=generator)]
        label[is_empty] = 0
        inputs = augment(images_to_tensor(pictures), generator).to(device)
        picks = (torch.arange(len(index))[:, None, None], label)
        target = classes[index][picks].to(device)
        target_depth = depths[index][picks].to(device)
        target_offset = (centres[index][picks].permute(0, 3, 1, 2) - _pixel_grid(label.shape[-1])).to(device)
        target_offset = target_offset / OFFSET_PX
        scores, offset, depth = net(inputs)
        inside = (label > 0).to(device)
        share = inside.float().mean().clamp_min(1e-3)
        offset_loss = ((offset - target_offset).abs().sum(dim=1) * inside).mean() / share
        depth_loss = ((depth - target_depth).abs() * inside).mean() / share
        return cross_entropy(scores, target) + OFFSET_WEIGHT * offset_loss + DEPTH_WEIGHT * depth_loss

    for progress in loop.train(run, options, compute_loss):
        yield run, progress


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur images (n, 3, h, w), add noise and shift their colours, all at random; changes images in place."""
    count = len(images)
    for i in range(count):
        if torch.rand((), generator=generator) < 0.4:
            scale = float(torch.empty(()).uniform_(0.35, 0.8, generator=generator))
            small = interpolate(images[i : i + 1], scale_factor=scale, mode="area")
            images[i : i + 1] = interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)
    gain = 1 + 0.12 * torch.randn((count, 3, 1, 1), generator=generator)
    shift = 0.08 * torch.randn((count, 3, 1, 1), generator=generator)
    noise = torch.randn(images.shape, generator=generator) * 0.06 * torch.rand((count, 1, 1, 1), generator=generator)
    return images * gain + shift + noise


def _targets_per_label(data: RenderedDataset) -> tuple[Tensor, Tensor, Tensor]:
    """Return class index (0 for background), depth in [0, 1] and centre of each label; label 0 is background."""
    count = len(data)
    figures = (data.classes >= 0).sum(axis=1, keepdims=True)
    classes = np.concatenate([np.zeros((count, 1)), data.classes + 1], axis=1)
    depths = np.concatenate([np.zeros((count, 1)), data.depths / np.maximum(figures - 1, 1)], axis=1)
    centres = np.concatenate([np.zeros((count, 1, 2)), data.centres], axis=1)
    return (
        torch.from_numpy(classes).long(),
        torch.from_numpy(depths).float(),
        torch.from_numpy(centres).float(),
    )


def render_empty_place(seed: int) -> NDArray[np.uint8]:
    """Render a place without figures, (128, 128, 3)."""
    rng = random.Random(f"empty {seed}")
    return np.asarray(draw_scene(rng, [], rng.choice(list(PLACES)), [], [])[0])


def _pixel_grid(size: int) -> Tensor:
    """Return the (x, y) coordinates of all pixels, (2, size, size)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([x, y]).float()


def evaluate(segmenter: WorldSegmenter, count: int, first_seed: int = 0) -> dict[str, float]:
    """Return scores on held-out renders.

    They are the mean IoU of each visible figure with its best region, and the shares of correct counts, classes,
    depth orders of overlapping pairs, and empty places (count // 5 of them) without a region.
    """
    overlaps: list[float] = []
    counts = classes = pairs = ordered = 0
    for seed in range(first_seed, first_seed + count):
        picture = sample_picture(seed)
        visible = [f for f in picture.figures if f.visible_mask.sum() >= segmenter.min_area_px]
        regions = segmenter.find_regions(picture.image, CLASSES)
        counts += len(regions) == len(visible)
        best = []
        for figure in visible:
            scored = [(mask_iou(figure.visible_mask.astype(np.float32), r.mask), r) for r in regions]
            overlap, region = max(scored, key=lambda s: s[0], default=(0.0, None))
            overlaps.append(overlap)
            classes += region is not None and region.class_name == figure.identity.class_name
            best.append((figure, region))
        for i, (a, ra) in enumerate(best):
            for b, rb in best[i + 1 :]:
                if (a.full_mask & b.full_mask).sum() > 40 and ra and rb and ra is not rb:
                    pairs += 1
                    ordered += (a.depth < b.depth) == (ra.depth < rb.depth)
    empty = sum(
        not segmenter.find_regions(Image.fromarray(render_empty_place(first_seed + i))) for i in range(count // 5)
    )
    return {
        "pictures": count,
        "empty_right": empty / (count // 5),
        "mean_iou": float(np.mean(overlaps)),
        "count_right": counts / count,
        "class_right": classes / len(overlaps),
        "depth_right": ordered / max(1, pairs),
    }
