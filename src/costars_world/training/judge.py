"""Trains the judge on rendered pictures: classes, attributes and identities."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from costars_world.judge.gallery import Gallery
from costars_world.judge.judge import (
    ATTRIBUTE_COLUMNS,
    EMBEDDING_DIM,
    Judge,
    JudgeNet,
    crop_figure,
    crops_to_input,
)
from costars_world.render.identity import ATTRIBUTES, CLASSES, Identity, sample_identity
from costars_world.render.world import Figure, WorldPicture, sample_picture
from costars_world.training import loop
from costars_world.training.dataset import CHUNK_SIZE, chunk_path, save_chunk
from costars_world.training.segmenter import augment

RECIPE = loop.Recipe(
    steps=3000, batch_size=64, learning_rate=2e-3, warmup_steps=100, decay_share=0.5, weight_decay=0.05
)
IDENTITIES = 2400
TRAIN_SEED = 300_000_000  # far from the seeds of all other parts
MARGIN = 0.3  # ArcFace, Eq. 3: additive angular margin in radians
SCALE = 24.0  # ArcFace, Eq. 3: scale of the logits
MIN_VISIBLE_PX = 150  # figures with a smaller visible area are not judged
MIN_VISIBLE_SHARE = 0.35
MAX_SHIFT_PX = 3
NUM_DISTRACTORS = 100  # in the evaluation of the shipped judge


@dataclass(frozen=True)
class FigureCrops:
    """crops (n, 64, 64, 4) uint8, and identities (n,) int16, indices into training_identities()."""

    crops: NDArray[np.uint8]
    identities: NDArray[np.int16]


@cache
def training_identities() -> tuple[Identity, ...]:
    """Return the distinct identities that the judge is trained to tell apart."""
    rng = random.Random("the judge's pool")
    found: dict[tuple[str, ...], Identity] = {}
    while len(found) < IDENTITIES:
        identity = sample_identity(rng)
        found.setdefault((identity.class_name, *identity.attributes.values()), identity)
    return tuple(found.values())


def visible_figures(picture: WorldPicture) -> list[tuple[int, Figure]]:
    """Return the figures with enough visible area, with their indices."""
    return [
        (i, f)
        for i, f in enumerate(picture.figures)
        if f.visible_mask.sum() >= max(MIN_VISIBLE_PX, MIN_VISIBLE_SHARE * f.full_mask.sum())
    ]


def render_chunk(task: tuple[Path, int]) -> None:
    """Render one chunk of pictures and write the crops of their figures."""
    folder, start = task
    crops, identities = [], []
    for seed in range(TRAIN_SEED + start, TRAIN_SEED + start + CHUNK_SIZE):
        rng = random.Random(f"judge {seed}")
        cast = rng.choices(range(IDENTITIES), k=rng.choices((1, 2, 3), (0.35, 0.5, 0.15))[0])
        picture = sample_picture(seed, cast=[training_identities()[i] for i in cast])
        for i, figure in visible_figures(picture):
            crops.append(crop_figure(picture.image, figure.visible_mask.astype(np.float32)))
            identities.append(cast[i])
    save_chunk(chunk_path(folder, start), crops=np.stack(crops), who=np.array(identities, dtype=np.int16))


def load(folder: Path, count: int) -> FigureCrops:
    """Load the figures of the first count pictures."""
    chunks = [np.load(chunk_path(folder, start)) for start in range(0, count, CHUNK_SIZE)]
    return FigureCrops(np.concatenate([c["crops"] for c in chunks]), np.concatenate([c["who"] for c in chunks]))


class _ArcFaceHead(nn.Module):
    """The judge's network with one direction per training identity; the directions are not shipped."""

    def __init__(self, net: JudgeNet) -> None:
        super().__init__()
        self.net = net
        self.directions = nn.Parameter(torch.randn(IDENTITIES, EMBEDDING_DIM))


def train(
    net: JudgeNet,
    figures: FigureCrops,
    options: loop.RunOptions,
) -> Iterator[tuple[loop.Run, loop.Progress]]:
    """Train on crops with random shift, blur, noise and colour changes."""
    device, batch_size = options.device, options.recipe.batch_size
    parts = _ArcFaceHead(net).to(device).train()
    run = loop.start(parts, options)
    crops, identities = torch.from_numpy(figures.crops), torch.from_numpy(figures.identities).long()
    targets = _make_targets()

    def compute_loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(crops), (batch_size,), generator=generator)
        x = crops_to_input(crops[index])
        x = torch.cat([augment(x[:, :3].contiguous(), generator), x[:, 3:]], dim=1)
        shift = torch.randint(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1, (2,), generator=generator).tolist()
        scores, embeddings = net(x.roll(shift, (2, 3)).to(device))
        truth = {key: target[identities[index]].to(device) for key, target in targets.items()}
        attribute_losses = [_score_loss(scores[:, c], truth[key]) for key, c in ATTRIBUTE_COLUMNS.items()]
        class_loss = cross_entropy(scores[:, : len(CLASSES)], truth["class", ""])
        identity_loss = margin_loss(embeddings, parts.directions, identities[index].to(device))
        return class_loss + torch.stack(attribute_losses).sum() / 4 + identity_loss / 4

    for progress in loop.train(run, options, compute_loss):
        yield run, progress


def _make_targets() -> dict[tuple[str, str], Tensor]:
    """Return {(class, attribute): value index of each training identity}, -1 if the identity does not show it."""
    identities = training_identities()
    targets = {("class", ""): torch.tensor([CLASSES.index(identity.class_name) for identity in identities])}
    for class_name, attribute in ATTRIBUTE_COLUMNS:
        values = ATTRIBUTES[class_name][attribute]
        indices = [
            values.index(identity[attribute])
            if identity.class_name == class_name and is_visible(identity, attribute)
            else -1
            for identity in identities
        ]
        targets[class_name, attribute] = torch.tensor(indices)
    return targets


def is_visible(identity: Identity, attribute: str) -> bool:
    """Whether an attribute can be seen: a bald man without a beard shows no hair colour."""
    if attribute != "hair_colour":
        return True
    return not (identity["hair_style"] == "bald" and identity.attributes.get("beard") == "none")


def _score_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Return the summed cross entropy of figures that have the attribute, divided by the batch size."""
    return cross_entropy(scores, target, ignore_index=-1, reduction="sum") / len(target)


def margin_loss(embeddings: Tensor, directions: Tensor, identities: Tensor) -> Tensor:
    """ArcFace, Eq. 3: cross entropy of s cos(angle), with the margin added to the angle of the true identity."""
    cosines = embeddings @ normalize(directions.float(), dim=-1).T
    target = cosines.gather(1, identities[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    with_margin = torch.cos(torch.acos(target) + MARGIN)
    return cross_entropy(SCALE * cosines.scatter(1, identities[:, None], with_margin), identities)


def evaluate(judge: Judge, count: int, first_seed: int = 0) -> dict[str, float]:
    """Return the accuracy of classes and attributes and the rank-1 rate of identities on held-out renders.

    Each figure is ranked with its own reference embedding among NUM_DISTRACTORS others of its class, or as many
    as the class has.
    """
    gallery = Gallery(judge, NUM_DISTRACTORS)
    classes = found = figures = 0
    attributes: list[bool] = []
    for seed in range(first_seed, first_seed + count):
        picture = sample_picture(seed)
        visible = [f for _, f in visible_figures(picture)]
        verdicts = judge([(picture.image, f.visible_mask.astype(np.float32)) for f in visible])
        for figure, verdict in zip(visible, verdicts, strict=True):
            identity = figure.identity
            figures += 1
            classes += verdict.identity.class_name == identity.class_name
            predicted = verdict.identity.attributes
            attributes += [predicted.get(k) == v for k, v in identity.attributes.items() if is_visible(identity, k)]
            reference = gallery.reference_embedding(identity)
            found += gallery.rank(verdict.embedding, reference, identity) == 1
    return {
        "figures": figures,
        "class_right": classes / figures,
        "attribute_right": float(np.mean(attributes)),
        "found_first": found / figures,
        "others": NUM_DISTRACTORS,
    }
