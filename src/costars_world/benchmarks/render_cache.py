"""Draws the cases of a claim, each picture once, and keeps its scores beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from costars.catalog import METHODS
from costars.errors import RegionError
from costars.records.layout_inputs import same_layout, with_scene
from costars.records.png_metadata import dump, write_failure, write_picture
from costars.scene.scene import Scene
from costars.studio import Studio
from costars.types import Plan
from costars_world.benchmarks.cases import Case
from costars_world.benchmarks.score import Scorer, means, order_kept

SCORES = "scores.json"


@dataclass
class Easel:
    """Where pictures are drawn and kept; the last layout serves every case that shares it."""

    studio: Studio
    scorer: Scorer
    out: Path
    plan: Plan | None = None
    failed: Scene | None = None
    hashes: dict[str, str] = field(default_factory=dict)

    def drawn(self, cases: Sequence[Case]) -> Iterator[tuple[Case, dict[str, Any]]]:
        """Every case with its facts: those of an earlier run are read, not drawn again."""
        for case in cases:
            folder = self.folder(case)
            kept = folder / SCORES
            facts = json.loads(kept.read_text()) if kept.exists() else self._draw(case, folder)
            yield case, facts

    def folder(self, case: Case) -> Path:
        """One folder for each scene, growth of the masks, model and set of concepts."""
        scene = case.scene.settled()
        concepts = [self._hash(member.concept) for member in scene.cast.values()]
        told = json.dumps([dump(scene), case.grown_px, self.studio.model(scene.model).facts.sha256, concepts])
        return self.out / "pictures" / hashlib.sha256(told.encode()).hexdigest()[:16]

    def _hash(self, concept: str) -> str:
        if concept not in self.hashes:
            self.hashes[concept] = self.studio.store.load(concept).sha256
        return self.hashes[concept]

    def _draw(self, case: Case, folder: Path) -> dict[str, Any]:
        scene = case.scene.settled()
        facts: dict[str, Any] = {"scene": dump(scene), "grown_px": case.grown_px, "failed": None}
        try:
            planned = self._planned(scene)
            picture = self.studio.render(_grown(planned, case.grown_px))
        except RegionError as error:
            folder.mkdir(parents=True, exist_ok=True)
            write_failure(error, folder)
            facts["failed"] = str(error)
        else:
            write_picture(picture, folder)
            regions = self.scorer.segmenter.regions(picture.image)
            held = replace(picture, plan=planned) if isinstance(planned, Plan) else picture  # the layout's own masks
            members = self.scorer.members(held, regions)
            facts |= {
                "members": {name: asdict(score) for name, score in members.items()},
                "means": means(members),
                "order_kept": order_kept(held, regions),
                "rows": dict(picture.rows),
                "seconds": {k: round(v, 3) for k, v in picture.seconds.items()},
            }
        partial = folder / f"{SCORES}.part"
        partial.write_text(json.dumps(facts, indent=2) + "\n")
        partial.rename(folder / SCORES)
        return facts

    def _planned(self, scene: Scene) -> Scene | Plan:
        """The scene's plan, the last one's where the layout is the same; the scene itself where none is drawn."""
        if METHODS[scene.method.name].draw_layout is None:
            return scene
        if self.failed is not None and same_layout(self.failed, scene):
            raise RegionError("the layout does not show the cast")
        if self.plan is None or not same_layout(self.plan.scene, scene):
            try:
                self.plan = self.studio.plan(scene)
            except RegionError:
                self.failed = scene
                raise
        return with_scene(self.plan, scene)


def _grown(planned: Scene | Plan, px: int) -> Scene | Plan:
    if not px or not isinstance(planned, Plan):
        return planned
    regions = {
        name: replace(region, mask=ndimage.binary_dilation(region.mask >= 0.5, iterations=px).astype(np.float32))
        for name, region in planned.regions.items()
    }
    return replace(planned, regions=regions)
