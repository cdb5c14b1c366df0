"""Scores one image: the identities of its members, and whether they are where the layout had them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from costars.builtin.segmenter import WorldSegmenter, load_segmenter
from costars.segment.overlap import mask_iou
from costars.types import MaskArray, Picture, Plan, Region
from costars_world.judge.gallery import Gallery, mean_embedding
from costars_world.judge.judge import JUDGE_WEIGHTS, Judge, Verdict, load_judge
from costars_world.judge.references import find_reference_identity, load_reference_figures
from costars_world.render.identity import Identity

NUM_DISTRACTORS = 100
MIN_IOU = 0.1  # a figure of the image is a member of the layout if the IoU of their masks is larger
TOUCH_PX = 3  # largest distance of two masks that touch


@dataclass(frozen=True, kw_only=True)
class MemberScore:
    """The scores of one member; all zero if the image does not show it.

    similarity is the cosine with its reference embedding, attributes the share of correct attributes, first whether
    it ranks first among 100 others of its class. iou compares the figure with the layout's mask (None without a
    layout).
    """

    found: bool
    similarity: float
    attributes: float
    first: bool
    iou: float | None


@dataclass
class Scorer:
    """Scores images with the judge and the segmenter; caches references of concepts."""

    judge: Judge
    segmenter: WorldSegmenter
    concepts: Path
    gallery: Gallery = field(init=False)
    references: dict[str, tuple[Identity, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gallery = Gallery(self.judge, NUM_DISTRACTORS)

    def reference(self, concept: str) -> tuple[Identity, Tensor]:
        """Return the identity of a pack concept and the mean embedding of its reference pictures."""
        if concept not in self.references:
            folder = self.concepts / concept
            verdicts = self.judge(load_reference_figures(folder, self.segmenter))
            embeddings = torch.stack([v.embedding for v in verdicts])
            self.references[concept] = (find_reference_identity(folder, verdicts), mean_embedding(embeddings))
        return self.references[concept]

    def score_members(self, picture: Picture, regions: Sequence[Region]) -> dict[str, MemberScore]:
        """Score every member of the cast from the regions of the picture.

        With a layout, a member is the figure that overlaps its mask most. Without one, figures are assigned to the
        most similar members, which favours methods without layouts.
        """
        verdicts = self.judge([(picture.image, r.mask) for r in regions])
        figures = [_Figure(r.mask, v) for r, v in zip(regions, verdicts, strict=True)]
        references = {
            name: self.reference(member.concept.removeprefix("builtin/")) for name, member in picture.scene.cast.items()
        }
        matches = _match_figures(figures, references, picture.plan)
        missing = MemberScore(
            found=False,
            similarity=0.0,
            attributes=0.0,
            first=False,
            iou=None if picture.plan is None else 0.0,
        )
        return {
            name: self._score_figure(*matches[name], reference) if name in matches else missing
            for name, reference in references.items()
        }

    def _score_figure(self, figure: _Figure, iou: float | None, reference: tuple[Identity, Tensor]) -> MemberScore:
        identity, embedding = reference
        verdict, predicted = figure.verdict, figure.verdict.identity
        same_class = predicted.class_name == identity.class_name
        correct = [same_class and predicted.attributes.get(k) == v for k, v in identity.attributes.items()]
        return MemberScore(
            found=True,
            similarity=float(verdict.embedding @ embedding),
            attributes=float(np.mean(correct)),
            first=self.gallery.rank(verdict.embedding, embedding, identity) == 1,
            iou=iou,
        )


@dataclass(frozen=True)
class _Figure:
    """A figure of an image, with the judge's verdict."""

    mask: MaskArray
    verdict: Verdict


def _match_figures(
    figures: Sequence[_Figure], references: Mapping[str, tuple[Identity, Tensor]], plan: Plan | None
) -> dict[str, tuple[_Figure, float | None]]:
    """Assign figures to members; return the figure of each found member and its IoU, which is None without a plan."""
    names = list(references)
    fit = np.zeros((len(names), len(figures)))
    for i, name in enumerate(names):
        for j, figure in enumerate(figures):
            if plan is None:
                fit[i, j] = float(figure.verdict.embedding @ references[name][1]) + 1
            else:
                fit[i, j] = mask_iou(plan.regions[name].mask, figure.mask)
    rows, columns = linear_sum_assignment(-fit)
    return {
        names[i]: (figures[j], None if plan is None else float(fit[i, j]))
        for i, j in zip(rows, columns, strict=True)
        if plan is None or fit[i, j] > MIN_IOU
    }


def compare_depth_order(picture: Picture, figures: Sequence[Region]) -> list[bool]:
    """Return, for every two members that touch in the layout, whether the picture keeps their depth order."""
    if picture.plan is None:
        return []
    kept = []
    for one, other in combinations(picture.plan.regions.values(), 2):
        if not _touch(one.mask, other.mask):
            continue
        a, b = (max(figures, key=lambda r: mask_iou(r.mask, m), default=None) for m in (one.mask, other.mask))
        if a is not None and b is not None and a is not b:
            kept.append((a.depth < b.depth) == (one.depth < other.depth))
    return kept


def _touch(one: MaskArray, other: MaskArray) -> bool:
    near = ndimage.binary_dilation(one >= 0.5, iterations=TOUCH_PX)
    return bool((near & (other >= 0.5)).any())


def load_scorer(builtin: Path) -> Scorer:
    """Load the scorer with the shipped weights."""
    cpu = torch.device("cpu")
    judge = load_judge(JUDGE_WEIGHTS, cpu)
    segmenter = load_segmenter(builtin / "segmenter" / "model.safetensors", cpu)
    return Scorer(judge, segmenter, builtin / "concepts")


def mean_scores(scores: Mapping[str, MemberScore]) -> dict[str, float | None]:
    """Average the scores over members; missing members count as zero."""
    means: dict[str, float | None] = {}
    for key in ("found", "similarity", "attributes", "first", "iou"):
        values = [float(v) for s in scores.values() if (v := getattr(s, key)) is not None]
        means[key] = float(np.mean(values)) if values else None
    return means
