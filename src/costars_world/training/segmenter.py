"""Training the built-in segmenter on rendered truth."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from costars.builtin.segmenter import OFFSET_PX, SegmenterNet, WorldSegmenter
from costars.segment.match_cast import mask_iou
from costars_world.render.backgrounds import PLACES
from costars_world.render.identity import CLASSES
from costars_world.render.world import draw, sample_picture
from costars_world.training import loop
from costars_world.training.dataset import TRAIN_SEED, Corpus
from costars_world.training.vae import pixels

RECIPE = loop.Recipe(steps=3200, batch=12, learning_rate=2e-3, warmup_steps=100, decay_share=0.4)
WAY_WEIGHT = 1.0
DEPTH_WEIGHT = 0.3
EMPTY = 700  # places without a figure, beside the corpus: a layout may show nobody
EMPTY_SHARE = 0.08  # of each batch, on average


def train(
    net: SegmenterNet,
    corpus: Corpus,
    checkpoint: Path,
    *,
    recipe: loop.Recipe,
    device: torch.device,
    minutes: float = math.inf,
    resume: bool = False,
) -> Iterator[tuple[loop.Run, loop.Progress]]:
    """Train on pictures that are blurred, speckled and recoloured at random, as drawn ones are."""
    net.to(device).train()
    run = loop.start(net, recipe, checkpoint, resume)
    images, labels = torch.from_numpy(corpus.images), torch.from_numpy(corpus.labels)
    classes, depths, centres = _per_label(corpus)
    empty = torch.from_numpy(np.stack([empty_place(TRAIN_SEED + i) for i in range(EMPTY)]))

    def loss_of(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(corpus), (recipe.batch,), generator=generator)
        pictures, label = images[index].clone(), labels[index].long()
        bare = torch.rand(recipe.batch, generator=generator) < EMPTY_SHARE
        pictures[bare] = empty[torch.randint(EMPTY, (int(bare.sum()),), generator=generator)]
        label[bare] = 0
        seen = worn(pixels(pictures), generator).to(device)
        picks = (torch.arange(len(index))[:, None, None], label)
        target = classes[index][picks].to(device)
        near = depths[index][picks].to(device)
        way = (centres[index][picks].permute(0, 3, 1, 2) - _grid(label.shape[-1])).to(device) / OFFSET_PX
        scores, guess, depth = net(seen)
        inside = (label > 0).to(device)
        share = inside.float().mean().clamp_min(1e-3)
        off = ((guess - way).abs().sum(dim=1) * inside).mean() / share
        deep = ((depth - near).abs() * inside).mean() / share
        return cross_entropy(scores, target) + WAY_WEIGHT * off + DEPTH_WEIGHT * deep

    for progress in loop.train(run, recipe, loss_of, device=device, checkpoint=checkpoint, minutes=minutes):
        yield run, progress


def worn(images: Tensor, generator: torch.Generator) -> Tensor:
    """(n, 3, h, w) pictures with blur, noise and a shift of colour, each drawn at random."""
    count = len(images)
    for i in range(count):
        if torch.rand((), generator=generator) < 0.4:
            share = float(torch.empty(()).uniform_(0.35, 0.8, generator=generator))
            small = interpolate(images[i : i + 1], scale_factor=share, mode="area")
            images[i : i + 1] = interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)
    gain = 1 + 0.12 * torch.randn((count, 3, 1, 1), generator=generator)
    shift = 0.08 * torch.randn((count, 3, 1, 1), generator=generator)
    noise = torch.randn(images.shape, generator=generator) * 0.06 * torch.rand((count, 1, 1, 1), generator=generator)
    return images * gain + shift + noise


def _per_label(corpus: Corpus) -> tuple[Tensor, Tensor, Tensor]:
    """Class index (0: the place), depth in [0, 1] and middle of each label, the place's row first."""
    count = len(corpus)
    figures = (corpus.classes >= 0).sum(axis=1, keepdims=True)
    classes = np.concatenate([np.zeros((count, 1)), corpus.classes + 1], axis=1)
    depths = np.concatenate([np.zeros((count, 1)), corpus.depths / np.maximum(figures - 1, 1)], axis=1)
    centres = np.concatenate([np.zeros((count, 1, 2)), corpus.centres], axis=1)
    return (
        torch.from_numpy(classes).long(),
        torch.from_numpy(depths).float(),
        torch.from_numpy(centres).float(),
    )


def empty_place(seed: int) -> NDArray[np.uint8]:
    """(128, 128, 3) a place where nobody is."""
    rng = random.Random(f"empty {seed}")
    return np.asarray(draw(rng, [], rng.choice(list(PLACES)), [], [])[0])


def _grid(size: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([x, y]).float()


def measure(segmenter: WorldSegmenter, count: int, first_seed: int = 0) -> dict[str, float]:
    """On held-out renders: mean IoU of each visible figure with its best region, share of right counts,
    share of right classes, and share of overlapping pairs whose depth order is right; of places without
    a figure, a fifth as many, the share in which none is found."""
    overlaps: list[float] = []
    counts = classes = pairs = ordered = 0
    for seed in range(first_seed, first_seed + count):
        picture = sample_picture(seed)
        seen = [f for f in picture.figures if f.visible_mask.sum() >= segmenter.smallest_px]
        regions = segmenter.regions(picture.image, CLASSES)
        counts += len(regions) == len(seen)
        best = []
        for figure in seen:
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
    empty = sum(not segmenter.regions(Image.fromarray(empty_place(first_seed + i))) for i in range(count // 5))
    return {
        "pictures": count,
        "empty_right": empty / (count // 5),
        "mean_iou": float(np.mean(overlaps)),
        "count_right": counts / count,
        "class_right": classes / len(overlaps),
        "depth_right": ordered / max(1, pairs),
    }
