"""Training the judge on rendered truth: classes, attributes, and who is who."""

from __future__ import annotations

import math
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
from costars_world.judge.judge import COLUMNS, EMBEDDING, Judge, JudgeNet, as_input, crop
from costars_world.render.identity import ATTRIBUTES, CLASSES, Identity, sample_identity
from costars_world.render.world import Figure, WorldPicture, sample_picture
from costars_world.training import loop
from costars_world.training.dataset import CHUNK, chunk, save_chunk
from costars_world.training.segmenter import worn

RECIPE = loop.Recipe(steps=3000, batch=64, learning_rate=2e-3, warmup_steps=100, decay_share=0.5, weight_decay=0.05)
IDENTITIES = 2400
TRAIN_SEED = 300_000_000  # far from the pictures of every other part
MARGIN = 0.3  # ArcFace, Eq. 3: radians between a picture and its own identity
SCALE = 24.0  # ArcFace, Eq. 3: radius of the sphere
FEWEST_PX = 150  # figures of which less is seen are not judged
SHARE_SEEN = 0.35
SHIFT_PX = 3
OTHERS = 100  # in the line-up that the shipped judge is measured against


@dataclass(frozen=True)
class Figures:
    """crops (n, 64, 64, 4) uint8 of figures and who (n,) index into the pool each is."""

    crops: NDArray[np.uint8]
    who: NDArray[np.int16]


@cache
def pool() -> tuple[Identity, ...]:
    """The distinct identities that the judge learns to tell apart."""
    rng = random.Random("the judge's pool")
    found: dict[tuple[str, ...], Identity] = {}
    while len(found) < IDENTITIES:
        who = sample_identity(rng)
        found.setdefault((who.class_name, *who.attributes.values()), who)
    return tuple(found.values())


def judged_figures(picture: WorldPicture) -> list[tuple[int, Figure]]:
    """The figures of which enough is seen, with their places in the cast."""
    return [
        (i, f)
        for i, f in enumerate(picture.figures)
        if f.visible_mask.sum() >= max(FEWEST_PX, SHARE_SEEN * f.full_mask.sum())
    ]


def render_chunk(task: tuple[Path, int]) -> None:
    """Write the crops of one chunk of pictures with identities of the pool."""
    folder, start = task
    crops, who = [], []
    for seed in range(TRAIN_SEED + start, TRAIN_SEED + start + CHUNK):
        rng = random.Random(f"judge {seed}")
        cast = rng.choices(range(IDENTITIES), k=rng.choices((1, 2, 3), (0.35, 0.5, 0.15))[0])
        picture = sample_picture(seed, cast=[pool()[i] for i in cast])
        for i, figure in judged_figures(picture):
            crops.append(crop(picture.image, figure.visible_mask.astype(np.float32)))
            who.append(cast[i])
    save_chunk(chunk(folder, start), crops=np.stack(crops), who=np.array(who, dtype=np.int16))


def load(folder: Path, count: int) -> Figures:
    """The figures of the first so many pictures."""
    chunks = [np.load(chunk(folder, start)) for start in range(0, count, CHUNK)]
    return Figures(np.concatenate([c["crops"] for c in chunks]), np.concatenate([c["who"] for c in chunks]))


class _Trained(nn.Module):
    """The judge's network and one direction for each identity of the pool, which is not shipped."""

    def __init__(self, net: JudgeNet) -> None:
        super().__init__()
        self.net = net
        self.directions = nn.Parameter(torch.randn(IDENTITIES, EMBEDDING))


def train(
    net: JudgeNet,
    figures: Figures,
    checkpoint: Path,
    *,
    recipe: loop.Recipe,
    device: torch.device,
    minutes: float = math.inf,
    resume: bool = False,
) -> Iterator[tuple[loop.Run, loop.Progress]]:
    """Train on crops that are shifted, blurred, speckled and recoloured at random."""
    parts = _Trained(net).to(device).train()
    run = loop.start(parts, recipe, checkpoint, resume)
    crops, who, targets = torch.from_numpy(figures.crops), torch.from_numpy(figures.who).long(), _targets()

    def loss_of(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(crops), (recipe.batch,), generator=generator)
        x = as_input(crops[index])
        x = torch.cat([worn(x[:, :3].contiguous(), generator), x[:, 3:]], dim=1)
        shift = torch.randint(-SHIFT_PX, SHIFT_PX + 1, (2,), generator=generator).tolist()
        scores, embeddings = net(x.roll(shift, (2, 3)).to(device))
        known = {key: target[who[index]].to(device) for key, target in targets.items()}
        named = [_score_loss(scores[:, COLUMNS[key]], known[key]) for key in COLUMNS]
        of_class = cross_entropy(scores[:, : len(CLASSES)], known["class", ""])
        alike = margin_loss(embeddings, parts.directions, who[index].to(device))
        return of_class + torch.stack(named).sum() / 4 + alike / 4

    for progress in loop.train(run, recipe, loss_of, device=device, checkpoint=checkpoint, minutes=minutes):
        yield run, progress


def _targets() -> dict[tuple[str, str], Tensor]:
    """{(class, attribute): value of each identity of the pool}, -1 where it has no such attribute or hides it."""
    out = {("class", ""): torch.tensor([CLASSES.index(who.class_name) for who in pool()])}
    for class_name, attribute in COLUMNS:
        values = ATTRIBUTES[class_name][attribute]
        told = [
            values.index(w[attribute]) if w.class_name == class_name and shows(w, attribute) else -1 for w in pool()
        ]
        out[class_name, attribute] = torch.tensor(told)
    return out


def shows(who: Identity, attribute: str) -> bool:
    """Whether an attribute can be seen at all: a bald head without a beard has no colour of hair."""
    hidden = attribute == "hair_colour" and who["hair_style"] == "bald" and who.attributes.get("beard") == "none"
    return not hidden


def _score_loss(scores: Tensor, target: Tensor) -> Tensor:
    """Cross entropy over the figures that have the attribute, as a share of the batch."""
    return cross_entropy(scores, target, ignore_index=-1, reduction="sum") / len(target)


def margin_loss(embeddings: Tensor, directions: Tensor, who: Tensor) -> Tensor:
    """ArcFace, Eq. 3: cross entropy of s cos(angle), with the own identity's angle widened by the margin."""
    cosines = embeddings @ normalize(directions.float(), dim=-1).T
    own = cosines.gather(1, who[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    widened = torch.cos(torch.acos(own) + MARGIN)
    return cross_entropy(SCALE * cosines.scatter(1, who[:, None], widened), who)


def measure(judge: Judge, count: int, first_seed: int = 0) -> dict[str, float]:
    """On held-out renders: share of right classes and attributes, and of identities found first among others.

    Each figure is held against one portrait of itself and one of each of the others, of its own class
    as far as the world has so many.
    """
    gallery = Gallery(judge, OTHERS)
    classes = found = figures = 0
    attributes: list[bool] = []
    for seed in range(first_seed, first_seed + count):
        picture = sample_picture(seed)
        kept = [f for _, f in judged_figures(picture)]
        verdicts = judge([(picture.image, f.visible_mask.astype(np.float32)) for f in kept])
        for figure, verdict in zip(kept, verdicts, strict=True):
            who = figure.identity
            figures += 1
            classes += verdict.identity.class_name == who.class_name
            seen = verdict.identity.attributes
            attributes += [seen.get(k) == v for k, v in who.attributes.items() if shows(who, k)]
            found += gallery.rank(verdict.embedding, gallery.reference(who), who) == 1
    return {
        "figures": figures,
        "class_right": classes / figures,
        "attribute_right": float(np.mean(attributes)),
        "found_first": found / figures,
        "others": OTHERS,
    }
