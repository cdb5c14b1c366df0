"""Draws the cases of a claim, each picture once, and keeps its scores beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from costars.catalog import METHODS
from costars.errors import RegionError
from costars.microworld.claims.cases import Case
from costars.microworld.claims.score import Scorer, means, order_kept
from costars.records import dump, same_layout, with_scene, write_failure, write_picture
from costars.scene import Scene
from costars.studio import Studio
from costars.types import Plan

SCORES = "scores.json"


@dataclass
class Easel:
    """Where pictures are drawn and kept; the last layout serves every case that shares it."""

    studio: Studio
    scorer: Scorer
    out: Path
    plan: Plan | None = None
    failed: Scene | None = None

    def drawn(self, cases: Sequence[Case]) -> Iterator[tuple[Case, dict[str, Any]]]:
        """Every case with its facts: those of an earlier run are read, not drawn again."""
        for case in cases:
            folder = self.folder(case.scene)
            kept = folder / SCORES
            facts = json.loads(kept.read_text()) if kept.exists() else self._draw(case.scene, folder)
            yield case, facts

    def folder(self, scene: Scene) -> Path:
        """One folder for each scene, model and set of concepts."""
        store, model = self.studio.store, self.studio.model(scene.model)
        concepts = [store.load(member.concept).sha256 for member in scene.cast.values()]
        told = json.dumps([dump(scene), model.facts.sha256, concepts], sort_keys=True)
        return self.out / "pictures" / hashlib.sha256(told.encode()).hexdigest()[:16]

    def _draw(self, scene: Scene, folder: Path) -> dict[str, Any]:
        try:
            picture = self.studio.render(self._planned(scene))
        except RegionError as error:
            self.failed = scene
            folder.mkdir(parents=True, exist_ok=True)
            write_failure(error, folder)
            facts: dict[str, Any] = {"scene": dump(scene), "failed": str(error)}
        else:
            write_picture(picture, folder)
            regions = self.scorer.segmenter.regions(picture.image)
            members = self.scorer.members(picture, regions)
            facts = {
                "scene": dump(scene),
                "failed": None,
                "members": {name: asdict(score) for name, score in members.items()},
                "means": means(members),
                "order_kept": order_kept(picture, regions),
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
            self.plan = self.studio.plan(scene)
        return with_scene(self.plan, scene)
