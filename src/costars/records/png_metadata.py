"""Pictures in files, with the scene and versions that they were made from."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from costars.files.folder_claim import check_no_earlier_run
from costars.files.output_folder import KINDS, atomic_folder
from costars.images.contact_sheet import make_contact_sheet
from costars.records.regions import region_facts, round_seconds, write_masks
from costars.scene.files import map_paths, read_picture_facts
from costars.scene.scene import Scene
from costars.segment.mask_files import has_mask_file
from costars.types import Picture, RegionError

EMPHASIS_NAMES = {"original": "Original", "no_norm": "No norm", "ignore": "Ignore"}  # AUTOMATIC1111's


def write_picture(picture: Picture, out: str | Path, *, replace: bool = False) -> None:
    """Write picture.png with its scene inside, layout.png, masks/NAME.png, sheet.png and result.json.

    Raises SceneError if out cannot be written, contains files that costars did not write, or, without replace, the
    picture of an earlier run.
    """
    check_no_earlier_run(Path(out), "picture", replace=replace)
    plan = picture.plan
    with atomic_folder(Path(out)) as folder:
        (folder / "picture.png").write_bytes(png(picture))
        if plan is not None:
            plan.layout.image.save(folder / "layout.png")
            write_masks(plan.regions, folder)
        make_contact_sheet(picture).save(folder / "sheet.png")
        regions = [region_facts(name, region) for name, region in plan.regions.items()] if plan else []
        facts = {
            "scene": dump(picture.scene),
            "seed": picture.scene.seed,
            "rows": dict(picture.rows),
            "seconds": round_seconds(picture.seconds),
            "regions": regions,
            "versions": dict(picture.versions),
            "hashes": dict(picture.hashes),
            "memory": picture.memory,
            "max_rows": picture.max_rows,
            **({"layer_counts": dict(picture.layer_counts)} if picture.layer_counts else {}),
            **({"lost": list(picture.lost)} if picture.lost else {}),
            **({"seen_as": dict(picture.seen_as)} if picture.seen_as else {}),
            **({"notes": list(picture.notes)} if picture.notes else {}),
        }
        (folder / "result.json").write_text(json.dumps(facts, indent=2) + "\n")


def write_failure(error: RegionError, out: Path) -> Path | None:
    """Write layout.png, every region that was found and missing.json, for a layout that does not show the cast.

    Returns the folder: out, or out/missing if out has a plan or picture of an earlier run.
    """
    if error.layout is None:
        return None
    place = out / "missing" if any((out / names[-1]).is_file() for names in KINDS.values()) else out
    with atomic_folder(place) as folder:
        error.layout.image.save(folder / "layout.png")
        found = {f"{i}-" + re.sub(r"[^\w-]", "_", r.class_name): r for i, r in enumerate(error.regions)}
        write_masks(found, folder)
        facts = {"missing": str(error), "regions": [region_facts(name, region) for name, region in found.items()]}
        (folder / "missing.json").write_text(json.dumps(facts, indent=2) + "\n")
    return place


def png(picture: Picture) -> bytes:
    """Encode the picture as PNG with its scene, versions and hashes inside: the same scene gives the same bytes.

    Also the rows per UNet call, because sums are rounded differently in a batch of another size.
    """
    facts: dict[str, Any] = {"scene": dump(picture.scene), "max_rows": picture.max_rows}
    facts |= {"hashes": dict(picture.hashes), "versions": dict(picture.versions)}
    if picture.plan is not None and picture.plan.edited:
        facts["edited"] = True
    info = PngInfo()
    info.add_text("costars", json.dumps(facts, sort_keys=True))
    info.add_text("parameters", parameters(picture))
    buffer = BytesIO()
    picture.image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def read_max_rows(path: Path) -> int | None:
    """The most rows of a UNet call in a picture that `load_scene` can read; None if it does not say."""
    rows = read_picture_facts(path).get("max_rows")
    return rows if type(rows) is int and rows > 0 else None


def find_other_files(path: Path, picture: Picture) -> list[str]:
    """Fields of the scene whose files are not those that the picture at the path was made with."""
    facts = read_picture_facts(path)
    hashes, versions = facts.get("hashes"), facts.get("versions")
    before = dict(hashes) if isinstance(hashes, dict) else {}
    if not all(has_mask_file(member) for member in picture.scene.cast.values()):
        before.pop("masks", None)  # they were found in the layout, which is drawn again
    if isinstance(versions, dict):
        before["model"] = versions.get("model_sha256")
    now = {**picture.hashes, "model": picture.versions["model_sha256"]}
    return [field for field, sha256 in before.items() if now.get(field, sha256) != sha256]


def parameters(picture: Picture) -> str:
    """The text chunk that AUTOMATIC1111 and similar programs read."""
    scene = picture.scene
    sampler = picture.versions["scheduler"] if scene.scheduler == "checkpoint" else scene.scheduler
    lines = [scene.prompt.replace("{", "").replace("}", "")]
    if scene.negative_prompt:
        lines.append(f"Negative prompt: {scene.negative_prompt}")
    width, height = picture.image.size
    lines.append(
        f"Steps: {scene.steps}, Sampler: {sampler}, CFG scale: {scene.guidance_scale}, Seed: {scene.seed}, "
        f"Size: {width}x{height}, Emphasis: {EMPHASIS_NAMES[scene.emphasis]}, "
        f"Model hash: {picture.versions['model_sha256'][:10]}, "
        f"Model: {Path(scene.model).name}, Version: costars {picture.versions['costars']}"
    )
    return "\n".join(lines)


def dump(scene: Scene) -> dict[str, Any]:
    """The scene as plain data, with absolute paths cut to file names."""
    return map_paths(scene, lambda _, name: _without_folders(name))


def _without_folders(value: str) -> str:
    is_absolute = value.startswith("~") or Path(value).is_absolute()
    return Path(value).name if is_absolute else value
