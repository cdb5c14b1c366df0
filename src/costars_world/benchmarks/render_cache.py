"""Renders the cases of a benchmark, each once, and stores their scores beside the images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from costars.catalog import load_method
from costars.records.layout_inputs import same_layout, with_scene
from costars.records.png_metadata import dump, write_failure, write_picture
from costars.scene.defaults import fill_defaults
from costars.scene.scene import Scene
from costars.studio import Studio
from costars.types import Picture, Plan, RegionError
from costars_world.benchmarks.cases import Case
from costars_world.benchmarks.score import Scorer, compare_depth_order, mean_scores

SCORES = "scores.json"


@dataclass
class RenderCache:
    """Renders cases into a folder; consecutive cases with the same layout share it."""

    studio: Studio
    scorer: Scorer
    out: Path
    plan: Plan | None = field(default=None, init=False)  # the latest
    failed: Scene | None = field(default=None, init=False)  # the latest scene whose layout failed
    concept_hashes: dict[str, str] = field(default_factory=dict, init=False)

    def render_cases(self, cases: Sequence[Case]) -> Iterator[tuple[Case, dict[str, Any]]]:
        """Yield every case with its scores; cases of an earlier run are read, not rendered again."""
        for case in cases:
            folder = self.folder_for(case)
            path = folder / SCORES
            facts = json.loads(path.read_text()) if path.exists() else self._render(case, folder)
            yield case, facts

    def folder_for(self, case: Case) -> Path:
        """Return the folder of a scene with its mask dilation, model and concepts."""
        scene = fill_defaults(case.scene)
        concepts = [self._concept_hash(member.concept) for member in scene.cast.values()]
        key = json.dumps([dump(scene), case.grown_px, self.studio.model(scene.model).info.sha256, concepts])
        return self.out / "pictures" / hashlib.sha256(key.encode()).hexdigest()[:16]

    def _concept_hash(self, concept: str) -> str:
        if concept not in self.concept_hashes:
            self.concept_hashes[concept] = self.studio.store.load(concept).sha256
        return self.concept_hashes[concept]

    def _render(self, case: Case, folder: Path) -> dict[str, Any]:
        scene = fill_defaults(case.scene)
        facts: dict[str, Any] = {"scene": dump(scene), "grown_px": case.grown_px, "failed": None}
        try:
            source = self._plan(scene)
            picture = self.studio.render(_dilate_masks(source, case.grown_px))
        except RegionError as error:
            folder.mkdir(parents=True, exist_ok=True)
            write_failure(error, folder)
            facts["failed"] = str(error)
        else:
            write_picture(picture, folder, replace=True)  # of a run that was killed before its scores
            facts |= self._score(picture, source)
        partial = folder / f"{SCORES}.part"
        partial.write_text(json.dumps(facts, indent=2) + "\n")
        partial.rename(folder / SCORES)
        return facts

    def _score(self, picture: Picture, source: Scene | Plan) -> dict[str, Any]:
        """Score a picture against the layout's masks before dilation."""
        regions = self.scorer.segmenter.find_regions(picture.image)
        undilated = replace(picture, plan=source) if isinstance(source, Plan) else picture
        members = self.scorer.score_members(undilated, regions)
        return {
            "members": {name: asdict(score) for name, score in members.items()},
            "means": mean_scores(members),
            "order_kept": compare_depth_order(undilated, regions),
            "rows": dict(picture.rows),
            "seconds": {k: round(v, 3) for k, v in picture.seconds.items()},
        }

    def _plan(self, scene: Scene) -> Scene | Plan:
        """Plan a scene, or reuse the latest plan for the same layout; methods without layouts take the scene."""
        if load_method(scene.method.name).draw_layout is None:
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


def _dilate_masks(source: Scene | Plan, px: int) -> Scene | Plan:
    if not px or not isinstance(source, Plan):
        return source
    regions = {
        name: replace(region, mask=ndimage.binary_dilation(region.mask >= 0.5, iterations=px).astype(np.float32))
        for name, region in source.regions.items()
    }
    return replace(source, regions=regions)
