"""Custom Diffusion's closed form: merge separately trained concepts into one set of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from costars.errors import TrainError
from costars.model.model import Model
from costars.model.text_encoder import find_word_spans
from costars.scene.prompt_syntax import escape_brackets
from costars.types import Concept

# Relative to the mean square of the regularization features, which span fewer directions than their width.
RIDGE = 1e-4


def merge_concepts(
    model: Model, concepts: Sequence[Concept], captions: Sequence[str], ridge: float = RIDGE
) -> list[Concept]:
    """The concepts with shared weights (Kumari et al. 2023, arXiv 2212.04488, equations 4 and 5).

    On the concepts' own words the shared weights give what each concept's weights give; on the regularization captions
    they differ as little as possible from the base model. Solved on the CPU in float64, in every memory tier. Raises
    TrainError for a concept without weights of its own, or with other layers than the first.
    """
    paths = list(concepts[0].weights)
    for concept in concepts:
        if not paths or list(concept.weights) != paths or any(weight.ndim != 2 for weight in concept.weights.values()):
            raise TrainError(
                f"{concept.name}: has full weights of {len(concept.weights)} layers, {concepts[0].name} of "
                f"{len(paths)}, but both need the same keys and values of cross-attention; merge concepts that "
                "custom-diffusion trained on one model"
            )
    features = [_concept_features(model, concept) for concept in concepts]
    encoded = (model.encode_text(caption, emphasis="none") for caption in captions)
    regularization = torch.cat([_to_cpu(text.tokens[0]) for text in encoded])
    modules = dict(model.unet.named_modules())
    weights: dict[str, Tensor] = {}
    for path in paths:
        base = _read_weight(modules[path.removeprefix("unet.")])
        targets = [_to_cpu(concept.weights[path]) @ own.T for concept, own in zip(concepts, features, strict=True)]
        solution = solve_weights(base, torch.cat(features), torch.cat(targets, dim=1), regularization, ridge=ridge)
        weights[path] = solution.float()
    return [replace(concept, weights=weights) for concept in concepts]


def _read_weight(layer: nn.Module) -> Tensor:
    """The layer's weight, also where it is loaded only for a call."""
    with align_module_device(layer):
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return _to_cpu(weight)


def _to_cpu(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def solve_weights(
    base: Tensor, features: Tensor, targets: Tensor, regularization: Tensor, ridge: float = RIDGE
) -> Tensor:
    """The weight (out, in) that maps features (s, in) exactly to targets (out, s).

    Of all such weights it is the one that differs least from base (out, in) on the regularization features (n, in).
    """
    gram = regularization.T @ regularization
    gram = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    directions = torch.linalg.solve(gram, features.T).T  # (s, in)
    residual = targets - base @ features.T
    return base + residual @ torch.linalg.pinv(directions @ features.T) @ directions


def _concept_features(model: Model, concept: Concept) -> Tensor:
    """(s, d) text features of the concept's own words, without weights, as they were trained."""
    words = f"{concept.trigger} {escape_brackets(concept.class_name)}".strip()
    text = model.encode_text(f"a {words}", learned=concept.words, emphasis="ignore")
    (positions,) = find_word_spans(model.encoders[0].tokenizer, f"a {words}", words, concept.words)
    return _to_cpu(text.tokens[0, list(positions)])
