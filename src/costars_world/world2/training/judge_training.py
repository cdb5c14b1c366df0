"""Training the judge on rendered truth, and how right it is on held-out pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from costars_world.world2.training.batches import Rendered, pieces
from costars_world.world2.training.clock import Span
from costars_world.world2.training.judge import EMBEDDING, JudgeNet, as_input, column_table, score_columns
from costars_world.world2.training.optimizer import FlatTraining, Rates
from costars_world.world2.training.plan import HELD_OUT, PORTRAIT, Plan
from costars_world.world2.training.segmenter_training import wear
from costars_world.world2.training.store import Store
from costars_world.world2.training.world import World

SHIFT_PX = 3  # crops of drawn figures are not centred as well as rendered ones
RATES = Rates(learning_rate=2e-3, warmup_steps=100, weight_decay=0.05)


@dataclass(frozen=True)
class JudgeRecipe:
    """Weights of the losses and rates; margin and scale are ArcFace's (Eq. 3: radians, radius)."""

    rates: Rates = RATES
    batch: int = 192
    margin: float = 0.3
    scale: float = 24.0
    attribute_weight: float = 0.25
    identity_weight: float = 0.25


class _Trained(nn.Module):
    """The judge's network and one direction for each identity of the pool, which is not kept."""

    def __init__(self, net: JudgeNet, identities: int) -> None:
        super().__init__()
        self.net = net
        self.directions = nn.Parameter(torch.randn(identities, EMBEDDING))


def train_judge(
    net: JudgeNet,
    rendered: Rendered,
    world: World,
    identities: int,
    recipe: JudgeRecipe,
    span: Span,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[int, Tensor], None] = lambda step, loss: None,
) -> int:
    """Train until the span is over, then leave the running mean in place as float32; returns the figures seen."""
    parts = _Trained(net, identities).to(device).train()
    training = FlatTraining(parts, recipe.rates, dtype)
    store, table = rendered.store, column_table(world.attributes).to(device)
    rng, seen, figures = np.random.default_rng(4), 0, np.empty((0, 2), np.int64)
    while not span.over():
        there = rendered.refresh()
        if not len(figures) or there > 1.3 * len(np.unique(figures[:, 0])):
            slots = np.concatenate(rendered.slots)
            figures = _judged(store, slots)
        chosen = figures[rng.integers(len(figures), size=recipe.batch)]
        crops = as_input(torch.from_numpy(store.crops[chosen[:, 0], chosen[:, 1]]).to(device))
        crops = torch.cat([wear(crops[:, :3].contiguous()), crops[:, 3:]], dim=1)
        shift = rng.integers(-SHIFT_PX, SHIFT_PX + 1, size=2).tolist()
        scores, embeddings = net(crops.roll(shift, (2, 3)).to(dtype))
        truth = _truth(store, chosen, device)
        loss = _loss(scores, embeddings, parts.directions, truth, table, recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        training.step(span.progress())
        seen += len(chosen)
        report(training.step_count, loss)
    parts.float()
    training.put(parts)
    net.eval()
    return seen


def _judged(store: Store, slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 2) slot and place of every figure of these slots that can be judged."""
    rows, places = np.nonzero(store.judged[slots])
    return np.stack([slots[rows], places], axis=1)


@dataclass(frozen=True)
class _Truth:
    classes: Tensor
    values: Tensor
    who: Tensor


def _truth(store: Store, chosen: NDArray[np.int64], device: torch.device) -> _Truth:
    picks = chosen[:, 0], chosen[:, 1]
    tables = (store.classes[picks], store.values[picks], store.who[picks])
    return _Truth(*(torch.from_numpy(t.astype(np.int64)).to(device) for t in tables))


def _loss(
    scores: Tensor, embeddings: Tensor, directions: Tensor, truth: _Truth, table: Tensor, recipe: JudgeRecipe
) -> Tensor:
    loss = cross_entropy(scores[:, : len(table)], truth.classes)
    columns = table[truth.classes]
    known = scores.gather(1, columns.clamp_min(0).flatten(1)).view(columns.shape).masked_fill(columns < 0, -1e4)
    values = truth.values[:, : columns.shape[1]]
    named = cross_entropy(known.flatten(0, 1), values.flatten(), ignore_index=-1, reduction="sum") / len(scores)
    alike = _margin_loss(embeddings, directions, truth.who, recipe)
    return loss + recipe.attribute_weight * named + recipe.identity_weight * alike


def _margin_loss(embeddings: Tensor, directions: Tensor, who: Tensor, recipe: JudgeRecipe) -> Tensor:
    """ArcFace, Eq. 3, over the figures of the pool, as a share of the batch."""
    cosines = embeddings @ normalize(directions.float(), dim=-1).T
    index = who.clamp_min(0)[:, None]
    own = cosines.gather(1, index).clamp(-1 + 1e-6, 1 - 1e-6)
    widened = torch.cos(torch.acos(own) + recipe.margin)
    logits = recipe.scale * cosines.scatter(1, index, widened)
    return cross_entropy(logits, who, ignore_index=-1, reduction="sum") / len(who)


@torch.no_grad()
def measure_judge(net: JudgeNet, rendered: Rendered, world: World, line_up: int) -> dict[str, float]:
    """On held-out figures: shares of right classes and attributes, and of identities found first in the line-up.

    A figure is found first where it is more like the mean of its own portraits than like that of each of
    the others of its class; line_up is their number, itself included.
    """
    plan, store = rendered.plan, rendered.store
    references = _references(net, plan, store)
    figures = _judged(store, _slots_of(plan, store, HELD_OUT))
    scores, embeddings = _run(net, store, figures)
    truth = _truth(store, figures, torch.device("cpu"))
    classes = scores[:, : len(world.classes)].argmax(dim=1) == truth.classes
    named: list[Tensor] = []
    for (class_name, attribute), columns in score_columns(world.attributes).items():
        j = list(world.attributes[class_name]).index(attribute)
        known = (truth.classes == world.classes.index(class_name)) & (truth.values[:, j] >= 0)
        named.append(scores[known][:, columns].argmax(dim=1) == truth.values[known, j])
    first = []
    for embedding, who in zip(embeddings, truth.who.tolist(), strict=True):
        if who in references:
            rivals = range(who // line_up * line_up, (who // line_up + 1) * line_up)
            alike = {k: float(references[k] @ embedding) for k in rivals if k in references}
            first.append(alike[who] >= max(alike.values()))
    return {
        "figures": len(figures),
        "class_right": float(classes.float().mean()) if len(figures) else 0.0,
        "attribute_right": float(torch.cat(named).float().mean()) if len(figures) else 0.0,
        "found_first": float(np.mean(first)) if first else 0.0,
        "line_up": line_up,
    }


def _slots_of(plan: Plan, store: Store, kind: int) -> NDArray[np.int64]:
    return np.flatnonzero(store.done() & (plan.kinds == kind))


def _references(net: JudgeNet, plan: Plan, store: Store) -> dict[int, Tensor]:
    """Unit mean of the embeddings of the portraits of each identity of the line-up."""
    figures = _judged(store, _slots_of(plan, store, PORTRAIT))
    _, embeddings = _run(net, store, figures)
    grouped: dict[int, list[Tensor]] = {}
    for (slot, place), embedding in zip(figures, embeddings, strict=True):
        grouped.setdefault(int(store.who[slot, place]), []).append(embedding)
    return {who: normalize(torch.stack(found).mean(dim=0), dim=0) for who, found in grouped.items() if who >= 0}


def _run(net: JudgeNet, store: Store, figures: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Scores and embeddings of figures (n, 2), on the CPU."""
    device = next(net.parameters()).device
    parts = [net(as_input(torch.from_numpy(store.crops[p[:, 0], p[:, 1]]).to(device))) for p in pieces(figures, 256)]
    if not parts:
        return torch.empty((0, net.scores.out_features)), torch.empty((0, EMBEDDING))
    return torch.cat([s.cpu() for s, _ in parts]), torch.cat([e.cpu() for _, e in parts])
