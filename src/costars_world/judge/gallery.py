"""A line-up: one identity among others of its class, as the judge knows them from portraits."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from costars_world.judge.judge import Judge
from costars_world.render.identity import Identity, identity_count, identity_from_seed
from costars_world.render.portraits import portraits

FIRST_SEED = 9_000_000  # of the identities in the line-up
PORTRAITS = 4  # of each


@dataclass
class Gallery:
    """Mean embeddings of up to so many other identities for each class, made when first asked for."""

    judge: Judge
    others: int = 100
    known: dict[str, list[tuple[Identity, Tensor]]] = field(default_factory=dict)

    def reference(self, who: Identity, seed: int = FIRST_SEED) -> Tensor:
        """(64,) unit mean of the embeddings of portraits."""
        pictures = portraits(who, PORTRAITS, seed)
        figures = [(p.image, p.figures[0].visible_mask.astype(np.float32)) for p in pictures]
        return mean_embedding(self.judge.embed(figures))

    def line_up(self, class_name: str) -> list[tuple[Identity, Tensor]]:
        """Distinct identities of a class with their references: others + 1, or all where there are fewer."""
        if class_name not in self.known:
            wanted, found = min(self.others + 1, identity_count(class_name)), dict[tuple[str, ...], Identity]()
            seed = FIRST_SEED
            while len(found) < wanted:
                who = identity_from_seed(seed, class_name)
                found.setdefault(tuple(who.attributes.values()), who)
                seed += 1
            self.known[class_name] = [
                (who, self.reference(who, FIRST_SEED + i)) for i, who in enumerate(found.values())
            ]
        return self.known[class_name]

    def strangers(self, who: Identity) -> list[Tensor]:
        """The references of those in the line-up who are not this one."""
        return [e for other, e in self.line_up(who.class_name) if other != who][: self.others]

    def rank(self, embedding: Tensor, reference: Tensor, who: Identity) -> int:
        """1 where the figure is more like the reference than like each of the others of its class."""
        alike = torch.stack(self.strangers(who)) @ embedding
        return 1 + int((alike >= reference @ embedding).sum())


def mean_embedding(embeddings: Tensor) -> Tensor:
    """(n, d) unit vectors to their (d,) unit mean."""
    return normalize(embeddings.mean(dim=0), dim=0)
