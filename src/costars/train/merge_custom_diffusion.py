"""Custom Diffusion's closed form: concepts that were taught apart get one set of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from costars.errors import TrainError
from costars.model.model import Model
from costars.types import Concept

RIDGE = 1e-4  # of the mean square of the other captions' features: these span fewer directions than a word has


def merged(model: Model, concepts: Sequence[Concept], others: Sequence[str], ridge: float = RIDGE) -> list[Concept]:
    """The concepts with common weights: what each layer makes of their own words is as each was taught, what it
    makes of other captions is as near to the base model's as can be (Kumari et al. 2023, equations 4 and 5).

    Raises TrainError for a concept without keys and values of its own, or with other layers than the first.
    """
    paths = list(concepts[0].weights)
    for concept in concepts:
        if not paths or list(concept.weights) != paths or any(weight.ndim != 2 for weight in concept.weights.values()):
            raise TrainError(
                f"{concept.name}: has {len(concept.weights)} whole layers, {concepts[0].name} {len(paths)}; "
                "merge concepts that custom-diffusion taught on one model"
            )
    own = [_own_features(model, concept) for concept in concepts]
    kept = torch.cat([model.encode_text(caption).tokens[0].double() for caption in others])
    modules = dict(model.unet.named_modules())
    weights: dict[str, Tensor] = {}
    for path in paths:
        base = modules[path.removeprefix("unet.")].weight
        assert isinstance(base, Tensor)
        wanted = [
            concept.weights[path].to(base.device).double() @ o.T for concept, o in zip(concepts, own, strict=True)
        ]
        weights[path] = solved(base.double(), torch.cat(own), torch.cat(wanted, dim=1), kept, ridge).float().cpu()
    return [replace(concept, weights=weights) for concept in concepts]


def solved(base: Tensor, own: Tensor, wanted: Tensor, kept: Tensor, ridge: float = RIDGE) -> Tensor:
    """The (out, in) that turns own (s, in) into wanted (out, s) exactly and differs least from base on kept (n, in)."""
    gram = kept.T @ kept
    gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    directions = torch.linalg.solve(gram, own.T).T  # (s, in)
    missing = wanted - base @ own.T
    return base + missing @ torch.linalg.pinv(directions @ own.T) @ directions


def _own_features(model: Model, concept: Concept) -> Tensor:
    """(s, d) what the text encoders make of a concept's own words."""
    words = f"{concept.trigger} {concept.class_name}".strip()
    text = model.encode_text(f"a {words}", [words], learned=concept.words)
    (places,) = text.spans[words]
    return text.tokens[0, list(places)].double()
