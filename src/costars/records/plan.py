"""Plans as folders: to look at, edit and render later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from costars.errors import ReadError, SceneError
from costars.files.folder_claim import check_no_earlier_run
from costars.files.output_folder import MAX_RECORD_BYTES, atomic_folder, is_interrupted, lock_results
from costars.files.plain_data import read_json
from costars.images.contact_sheet import make_plan_sheet
from costars.records.layout_files import hash_layout, read_layout, write_layout
from costars.records.layout_inputs import check_layout_inputs, layout_inputs
from costars.records.regions import describe_masks, hash_masks, read_region, region_facts, round_seconds, write_masks
from costars.scene.files import anchor_paths
from costars.scene.scene import parse_scene
from costars.types import Plan


def write_plan(plan: Plan, out: Path, *, replace: bool = False) -> None:
    """Write plan.json, layout.png, layout.safetensors (latents, maps), masks/NAME.png and sheet.png.

    The scene's paths are absolute there, so the plan works wherever it lies. Raises SceneError if out cannot be
    written, contains files that costars did not write, or, without replace, the plan of an earlier run.
    """
    check_no_earlier_run(out, "plan", replace=replace)
    layout, scene = plan.layout, anchor_paths(plan.scene, Path()).model_dump(mode="json", exclude_none=True)
    facts = {
        "scene": scene,
        "layout": {"prompt": layout.prompt, "rows": layout.rows, "layout_inputs": layout_inputs(parse_scene(scene))},
        "regions": [region_facts(name, region) for name, region in plan.regions.items()],
        "layout_sha256": hash_layout(layout),
        "masks_sha256": hash_masks(plan.regions),
        "seconds": round_seconds(plan.seconds),
        "notes": [*layout.notes, *plan.notes],
        "extra_figures": list(plan.extra_figures),
        "hashes": dict(plan.hashes),
    }
    with atomic_folder(out) as folder:
        (folder / "plan.json").write_text(json.dumps(facts, indent=2) + "\n")
        write_layout(layout, folder)
        write_masks(plan.regions, folder)
        make_plan_sheet(plan).save(folder / "sheet.png")


def read_plan(folder: Path) -> Plan:
    """Read a plan from its folder; its masks, depths and scene may have been edited.

    Raises SceneError if a file is missing, damaged or another plan's, or the masks are not the cast's.
    """
    if not (folder / "plan.json").is_file() and not is_interrupted(folder):
        picture = folder / "picture.png"
        hint = f"to draw its picture again, render {picture}" if picture.is_file() else "make one with costars plan"
        raise SceneError(f"{folder}: has no plan.json; {hint}")
    with lock_results(folder):
        try:
            facts = _Facts.model_validate(read_json(folder / "plan.json", MAX_RECORD_BYTES))
            layout = read_layout(folder, facts.layout.prompt, facts.layout.rows)
            if hash_layout(layout) != facts.layout_sha256:
                raise ReadError(
                    folder, "layout.safetensors or layout.png is not the one that plan.json was written with"
                )
        except ReadError as error:
            raise SceneError(f"{folder}: not a readable plan ({error}); plan the scene again") from None
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise SceneError(
                f"{folder}: not a readable plan ({place}: {problem['msg']}); plan the scene again"
            ) from None
        scene = parse_scene(facts.scene, f"{folder.name}/plan.json")
        if {region.name for region in facts.regions} != set(scene.cast) or len(facts.regions) != len(scene.cast):
            raise SceneError(
                f"{folder.name}/plan.json: regions are of {sorted(region.name for region in facts.regions)}, the cast "
                f"is {sorted(scene.cast)}; plan the scene again"
            )
        regions = {r.name: read_region(folder, r.model_dump(), layout.image.size) for r in facts.regions}
    check_layout_inputs(facts.layout.layout_inputs, scene, f"{folder.name}/plan.json: ")
    edited = facts.masks_sha256 != hash_masks(regions)
    return Plan(
        scene=scene,
        layout=layout,
        regions=regions,
        seconds=facts.seconds,
        edited=edited,
        notes=(*facts.notes, *describe_masks(folder, regions)),
        extra_figures=facts.extra_figures,
        hashes=facts.hashes,
    )


class _RegionFacts(BaseModel):
    name: str
    class_name: str
    score: float
    depth: int = Field(ge=0)


class _LayoutFacts(BaseModel):
    prompt: str
    rows: int = Field(ge=0)
    layout_inputs: dict[str, Any]


class _Facts(BaseModel):
    """What plan.json must have."""

    scene: dict[str, Any]
    layout: _LayoutFacts
    regions: list[_RegionFacts]
    layout_sha256: str
    masks_sha256: str
    seconds: dict[str, float]
    notes: tuple[str, ...]
    extra_figures: tuple[str, ...]
    hashes: dict[str, str]
