"""Plans as folders: to look at, edit and render later."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import from_numpy

from costars.errors import SceneError
from costars.files.folder_claim import check_no_earlier_run
from costars.files.output_folder import atomic_folder
from costars.images.contact_sheet import make_plan_sheet
from costars.records.layout_inputs import check_layout_inputs, layout_inputs
from costars.records.regions import describe_masks, hash_masks, read_region, region_facts, round_seconds, write_masks
from costars.scene.files import anchor_paths
from costars.scene.scene import parse_scene
from costars.types import Layout, Plan


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
        "masks_sha256": hash_masks(plan.regions),
        "seconds": round_seconds(plan.seconds),
    }
    maps = {f"map/{word}": from_numpy(array) for word, array in layout.maps.items()}
    with atomic_folder(out) as folder:
        (folder / "plan.json").write_text(json.dumps(facts, indent=2) + "\n")
        layout.image.save(folder / "layout.png")
        (folder / "layout.safetensors").write_bytes(save_tensors({"latents": layout.latents.cpu(), **maps}))
        write_masks(plan.regions, folder)
        make_plan_sheet(plan).save(folder / "sheet.png")


def read_plan(folder: Path) -> Plan:
    """Read a plan from its folder; its masks, depths and scene may have been edited.

    Raises SceneError if a file is missing, damaged, or the masks are not the cast's.
    """
    if not (folder / "plan.json").is_file():
        picture = folder / "picture.png"
        hint = f"to draw its picture again, render {picture}" if picture.is_file() else "make one with costars plan"
        raise SceneError(f"{folder}: has no plan.json; {hint}")
    try:
        facts = json.loads((folder / "plan.json").read_text())
        scene = parse_scene(facts["scene"], f"{folder.name}/plan.json")
        with safe_open(folder / "layout.safetensors", framework="pt") as file:  # type: ignore[no-untyped-call]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        with Image.open(folder / "layout.png") as image:
            layout = Layout(
                image=image.convert("RGB"),
                latents=tensors.pop("latents"),
                maps={key.removeprefix("map/"): t.numpy() for key, t in tensors.items()},
                prompt=facts["layout"]["prompt"],
                rows=facts["layout"]["rows"],
            )
        regions = {r["name"]: read_region(folder, r, layout.image.size) for r in facts["regions"]}
        before, seconds = facts["layout"]["layout_inputs"], dict(facts["seconds"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SceneError(f"{folder}: not a readable plan ({error}); plan the scene again") from None
    if set(regions) != set(scene.cast):
        raise SceneError(
            f"{folder.name}/plan.json: regions are of {sorted(regions)}, the cast is {sorted(scene.cast)}; "
            "plan the scene again"
        )
    check_layout_inputs(before, scene, f"{folder.name}/plan.json: ")
    edited = facts.get("masks_sha256") != hash_masks(regions)
    return Plan(scene, layout, regions, seconds, edited=edited, notes=describe_masks(folder, regions))
