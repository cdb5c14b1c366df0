"""Scores of one picture: who is in it, and whether they stand where the layout had them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from costars.builtin.segmenter import WorldSegmenter, load_segmenter
from costars.segment.match_cast import mask_iou
from costars.types import MaskArray, Picture, Region
from costars_world.judge.gallery import Gallery, mean_embedding
from costars_world.judge.judge import JUDGE_WEIGHTS, Judge, Verdict, load_judge
from costars_world.judge.references import identity_of, reference_figures
from costars_world.render.backgrounds import PLACES
from costars_world.render.identity import Identity
from costars_world.render.portraits import SEED
from costars_world.render.world import sample_picture

OTHERS = 100
LEAST_IOU = 0.1  # a figure of the picture is a member of the layout if their masks overlap this much
TOUCH_PX = 3  # two figures meet if their masks are no farther apart
LIGHTS = 2  # renders from which a figure's true colour in a place is taken


@dataclass(frozen=True)
class MemberScore:
    """How one member came out; all zero where it is not in the picture.

    similarity is the cosine with its references, attributes the share that is right, first whether it
    is more like itself than like each of 100 others of its class; iou holds the figure against the
    layout's mask (None without a layout), light is the mean difference of its colour, in [0, 1], from
    renders of the same identity in the same place (None where it is missing).
    """

    found: bool
    similarity: float
    attributes: float
    first: bool
    iou: float | None
    light: float | None


@dataclass
class Scorer:
    """The judge, the segmenter and what they know of the concepts, looked up once."""

    judge: Judge
    segmenter: WorldSegmenter
    concepts: Path
    gallery: Gallery = field(init=False)
    references: dict[str, tuple[Identity, Tensor]] = field(default_factory=dict)
    colours: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gallery = Gallery(self.judge, OTHERS)

    def reference(self, concept: str) -> tuple[Identity, Tensor]:
        """Who a concept of the pack is, and the mean embedding of its reference pictures."""
        if concept not in self.references:
            folder = self.concepts / concept
            verdicts = self.judge(reference_figures(folder, self.segmenter))
            embeddings = torch.stack([v.embedding for v in verdicts])
            self.references[concept] = (identity_of(folder, verdicts), mean_embedding(embeddings))
        return self.references[concept]

    def members(self, picture: Picture, regions: Sequence[Region]) -> dict[str, MemberScore]:
        """The score of every member of the cast, from the figures that the segmenter finds in the picture.

        With a layout a member is the figure that overlaps its mask most; without one the figures go
        to the members that they are most like, which favours methods that have no layout.
        """
        verdicts = self.judge([(picture.image, r.mask) for r in regions])
        who = {n: self.reference(m.concept.removeprefix("builtin/")) for n, m in picture.scene.cast.items()}
        plan = picture.plan
        names = list(who)
        fit = np.zeros((len(names), len(regions)))
        for i, name in enumerate(names):
            for j, (region, verdict) in enumerate(zip(regions, verdicts, strict=True)):
                alike = float(verdict.embedding @ who[name][1])
                fit[i, j] = alike + 1 if plan is None else mask_iou(plan.regions[name].mask, region.mask)
        rows, columns = linear_sum_assignment(-fit)
        taken = {names[i]: int(j) for i, j in zip(rows, columns, strict=True) if plan is None or fit[i, j] > LEAST_IOU}
        place = place_of(picture.scene.prompt)
        return {
            name: self._score(
                picture.image,
                regions[taken[name]],
                verdicts[taken[name]],
                *who[name],
                None if plan is None else float(fit[i, taken[name]]),
                place,
            )
            if name in taken
            else MemberScore(False, 0.0, 0.0, False, None if plan is None else 0.0, None)
            for i, name in enumerate(names)
        }

    def _score(
        self,
        image: Image.Image,
        region: Region,
        verdict: Verdict,
        who: Identity,
        reference: Tensor,
        iou: float | None,
        place: str,
    ) -> MemberScore:
        seen = verdict.identity
        same = seen.class_name == who.class_name
        right = [same and seen.attributes.get(k) == v for k, v in who.attributes.items()]
        first = self.gallery.rank(verdict.embedding, reference, who) == 1
        colour = _mean_colour(image, region.mask)
        light = float(np.abs(colour - self._true_colour(who, place)).mean())
        return MemberScore(True, float(verdict.embedding @ reference), float(np.mean(right)), first, iou, light)

    def _true_colour(self, who: Identity, place: str) -> np.ndarray:
        key = (str(who), place)
        if key not in self.colours:
            renders = [sample_picture(SEED - 1 - i, cast=[who], place=place) for i in range(LIGHTS)]
            shown = [_mean_colour(p.image, p.figures[0].visible_mask.astype(np.float32)) for p in renders]
            self.colours[key] = np.mean(shown, axis=0)
        return self.colours[key]


def order_kept(picture: Picture, drawn: Sequence[Region]) -> list[bool]:
    """For every two members that meet in the layout: whether the same one is in front in the picture."""
    if picture.plan is None:
        return []
    kept = []
    for one, other in combinations(picture.plan.regions.values(), 2):
        if not _meet(one.mask, other.mask):
            continue
        a, b = (max(drawn, key=lambda r: mask_iou(r.mask, m), default=None) for m in (one.mask, other.mask))
        if a is not None and b is not None and a is not b:
            kept.append((a.depth < b.depth) == (one.depth < other.depth))
    return kept


def _meet(one: MaskArray, other: MaskArray) -> bool:
    near = ndimage.binary_dilation(one >= 0.5, iterations=TOUCH_PX)
    return bool((near & (other >= 0.5)).any())


def _mean_colour(image: Image.Image, mask: MaskArray) -> np.ndarray:
    colour: np.ndarray = np.asarray(image.convert("RGB"), dtype=np.float64)[mask >= 0.5].mean(axis=0) / 255
    return colour


def place_of(prompt: str) -> str:
    """The place that a prompt names."""
    (found,) = [name for name, place in PLACES.items() if prompt.endswith(place.phrase)]
    return found


def shipped_scorer(builtin: Path) -> Scorer:
    """The scorer on the weights that ship."""
    cpu = torch.device("cpu")
    judge = load_judge(JUDGE_WEIGHTS, cpu)
    segmenter = load_segmenter(builtin / "segmenter" / "model.safetensors", cpu)
    return Scorer(judge, segmenter, builtin / "concepts")


def means(scores: Mapping[str, MemberScore]) -> dict[str, float | None]:
    """The mean over the members for whom there is a value; missing members count as zero, but not for light."""
    out: dict[str, float | None] = {}
    for key in ("found", "similarity", "attributes", "first", "iou", "light"):
        values = [float(v) for s in scores.values() if (v := getattr(s, key)) is not None]
        out[key] = float(np.mean(values)) if values else None
    return out
