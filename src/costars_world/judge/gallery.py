"""Ranks an identity among other identities of its class by embeddings of rendered portraits."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from costars_world.judge.judge import Judge
from costars_world.render.identity import Identity, count_identities, identity_from_seed
from costars_world.render.portraits import draw_portraits

FIRST_SEED = 9_000_000  # of the gallery's identities
PORTRAITS_PER_IDENTITY = 4


@dataclass
class Gallery:
    """Reference embeddings of up to num_distractors other identities per class, computed on first use."""

    judge: Judge
    num_distractors: int = 100
    cache: dict[str, list[tuple[Identity, Tensor]]] = field(default_factory=dict)

    def reference_embedding(self, identity: Identity, seed: int = FIRST_SEED) -> Tensor:
        """Return the unit mean (64,) of the embeddings of portraits of an identity."""
        pictures = draw_portraits(identity, PORTRAITS_PER_IDENTITY, seed)
        figures = [(p.image, p.figures[0].visible_mask.astype(np.float32)) for p in pictures]
        return mean_embedding(self.judge.embed(figures))

    def class_references(self, class_name: str) -> list[tuple[Identity, Tensor]]:
        """Return up to num_distractors + 1 distinct identities of a class with their references."""
        if class_name not in self.cache:
            wanted = min(self.num_distractors + 1, count_identities(class_name))
            found: dict[tuple[str, ...], Identity] = {}
            seed = FIRST_SEED
            while len(found) < wanted:
                identity = identity_from_seed(seed, class_name)
                found.setdefault(tuple(identity.attributes.values()), identity)
                seed += 1
            self.cache[class_name] = [
                (identity, self.reference_embedding(identity, FIRST_SEED + i))
                for i, identity in enumerate(found.values())
            ]
        return self.cache[class_name]

    def distractors(self, identity: Identity) -> list[Tensor]:
        """Return the references of the other identities of the same class."""
        references = self.class_references(identity.class_name)
        return [embedding for other, embedding in references if other != identity][: self.num_distractors]

    def rank(self, embedding: Tensor, reference: Tensor, identity: Identity) -> int:
        """Return the rank of the reference among the distractors by similarity to the embedding; 1 is the best."""
        similarities = torch.stack(self.distractors(identity)) @ embedding
        return 1 + int((similarities >= reference @ embedding).sum())


def mean_embedding(embeddings: Tensor) -> Tensor:
    """Average unit vectors (n, d) to a unit vector (d,)."""
    return normalize(embeddings.mean(dim=0), dim=0)
