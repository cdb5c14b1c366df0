"""Plans and pictures on disk: self-describing files, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import from_numpy

from costars.errors import RegionError, SceneError
from costars.scene import Scene, parse_scene
from costars.scene_files import FILES_ALONE, with_files
from costars.segment.assign import depth_order
from costars.sheets import sheet
from costars.types import Layout, Picture, Plan, Region


def check_folder(out: Path, kind: str = "") -> None:
    """Raises SceneError if this cannot be a folder to write into, or holds what this kind would replace.

    kind is "plan" or "picture": one never takes the place of the other, nor of what we did not write.
    """
    for place in (out, *out.parents):
        if place.exists():
            if not place.is_dir() or not os.access(place, os.W_OK):
                raise SceneError(f"--out {out}: {place} is not a folder that can be written; choose another")
            break
    for other in KINDS.keys() - {kind} if kind else ():
        if (out / KINDS[other][-1]).is_file():
            raise SceneError(
                f"--out {out}: holds a {other} of an earlier run, which would be lost; choose another folder"
            )
    _check_ours(out, [Path(name) for name in KINDS.get(kind, ())], written_before(out))


def _check_ours(out: Path, names: Iterable[Path], old: Sequence[Path]) -> None:
    """Raises SceneError for a name that is there and not among what we wrote."""
    for name in names:
        if (out / name).exists() and out / name not in old:
            raise SceneError(f"--out {out}: holds {name}, which costars did not write; choose another folder")


# What a run of each kind leaves, its own record last.
KINDS = {
    "plan": ("layout.png", "layout.safetensors", "plan.json"),
    "picture": ("picture.png", "layout.png", "sheet.png", "result.json"),
}
# What a run may leave in its folder, beside masks/NAME.png; each of the last three tells of the masks.
OURS = ("picture.png", "layout.png", "sheet.png", "layout.safetensors", "result.json", "plan.json", "missing.json")


def written_before(out: Path) -> list[Path]:
    """The files of a folder that an earlier run wrote, as its own records tell; none of anybody else's."""
    for record in OURS[-3:]:
        try:
            regions = json.loads((out / record).read_text())["regions"]
            masks = [out / "masks" / f"{region['name']}.png" for region in regions]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return [path for path in (*(out / name for name in OURS), *masks) if path.is_file()]
    return []


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder inside out to write into; its files replace what we wrote there before if the block succeeds.

    Raises SceneError, and writes nothing, where a file would replace one that we did not write.
    """
    check_folder(out)
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=".part", dir=out))
    try:
        yield partial
        old, new = written_before(out), sorted(p.relative_to(partial) for p in partial.rglob("*") if p.is_file())
        _check_ours(out, new, old)
        for path in old:
            path.unlink()
        for name in new:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / name, out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if (out / "masks").is_dir() and not any((out / "masks").iterdir()):
            (out / "masks").rmdir()
        if made and not any(out.iterdir()):
            out.rmdir()


def write_plan(plan: Plan, out: Path, base: Path | None = None) -> None:
    """plan.json, layout.png, layout.safetensors (latents, maps) and masks/NAME.png.

    base is the folder that the scene's relative paths are beside; the plan has them absolute, so
    that it works wherever it lies.
    """
    layout, scene = plan.layout, _anchored(plan.scene, base or Path())
    facts = {
        "scene": scene,
        "layout": {"prompt": layout.prompt, "rows": layout.rows, "drawn_from": _drawn_from(parse_scene(scene))},
        "regions": [_region(name, region) for name, region in plan.regions.items()],
        "masks_sha256": _masks_hash(plan.regions),
        "seconds": _rounded(plan.seconds),
    }
    maps = {f"map/{word}": from_numpy(array) for word, array in layout.maps.items()}
    with whole_folder(out) as folder:
        (folder / "plan.json").write_text(json.dumps(facts, indent=2) + "\n")
        layout.image.save(folder / "layout.png")
        (folder / "layout.safetensors").write_bytes(save_tensors({"latents": layout.latents.cpu(), **maps}))
        _write_masks(plan.regions, folder)


def _masks_hash(regions: Mapping[str, Region]) -> str:
    """Of who stands where, as the files hold it."""
    digest = hashlib.sha256()
    for name, region in sorted(regions.items()):
        digest.update(f"{name} {region.depth} ".encode() + _levels(region).tobytes())
    return digest.hexdigest()


def _levels(region: Region) -> NDArray[np.uint8]:
    return (region.mask * 255).round().astype(np.uint8)


def _anchored(scene: Scene, base: Path) -> dict[str, Any]:
    """The scene as plain data, its relative files made absolute."""

    def found(key: str, name: str) -> str:
        path = base / Path(name).expanduser()
        there = path.is_file() or (key not in FILES_ALONE and name != "builtin" and path.is_dir())
        return str(path.resolve()) if there else name

    return with_files(scene, found)


def _write_masks(regions: Mapping[str, Region], folder: Path) -> None:
    (folder / "masks").mkdir(exist_ok=True)
    for name, region in regions.items():
        Image.fromarray(_levels(region)).save(folder / "masks" / f"{name}.png")


def read_plan(folder: Path) -> Plan:
    """A plan that was written before; its masks, depths and scene may have been edited.

    Raises SceneError if a file is missing, damaged, or the masks are not the cast's.
    """
    if not (folder / "plan.json").is_file():
        picture = folder / "picture.png"
        hint = f"to draw its picture again, render {picture}" if picture.is_file() else "make one with costars plan"
        raise SceneError(f"{folder}: holds no plan.json; {hint}")
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
        regions = {r["name"]: _read_region(folder, r, layout.image.size) for r in facts["regions"]}
        drawn_from, seconds = facts["layout"]["drawn_from"], dict(facts["seconds"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SceneError(f"{folder}: not a plan that costars can read ({error}); plan the scene again") from None
    if set(regions) != set(scene.cast):
        raise SceneError(f"{folder.name}/plan.json: regions are of {sorted(regions)}, the cast is {sorted(scene.cast)}")
    _check_drawn_from(drawn_from, scene, f"{folder.name}/plan.json: ")
    return Plan(scene, layout, regions, seconds, edited=facts.get("masks_sha256") != _masks_hash(regions))


def _read_region(folder: Path, facts: Mapping[str, Any], size: tuple[int, int]) -> Region:
    with Image.open(folder / "masks" / f"{facts['name']}.png") as image:
        if image.size != size:
            raise ValueError(f"masks/{facts['name']}.png is {image.size}, the layout is {size}")
        mask = (np.asarray(image.convert("L")) / 255).astype(np.float32)
    return Region(str(facts["class_name"]), mask, float(facts["score"]), int(facts["depth"]))


def write_picture(picture: Picture, out: Path) -> None:
    """picture.png with its scene inside, layout.png, masks/NAME.png, sheet.png and result.json."""
    plan = picture.plan
    with whole_folder(out) as folder:
        (folder / "picture.png").write_bytes(png(picture))
        if plan is not None:
            plan.layout.image.save(folder / "layout.png")
            _write_masks(plan.regions, folder)
        sheet(picture).save(folder / "sheet.png")
        regions = [_region(name, region) for name, region in plan.regions.items()] if plan else []
        facts = {
            "scene": dump(picture.scene),
            "seed": picture.scene.seed,
            "rows": dict(picture.rows),
            "seconds": _rounded(picture.seconds),
            "regions": regions,
            "versions": dict(picture.versions),
            "memory": picture.memory,
            **({"lost": list(picture.lost)} if picture.lost else {}),
            **({"notes": list(picture.notes)} if picture.notes else {}),
        }
        (folder / "result.json").write_text(json.dumps(facts, indent=2) + "\n")


def write_failure(error: RegionError, out: Path) -> Path | None:
    """layout.png, every region that was found and missing.json, for a layout that does not show the cast.

    Returns the folder: out, or one in it where out holds a plan or picture of an earlier run.
    """
    if error.layout is None:
        return None
    place = out / "missing" if any((out / names[-1]).is_file() for names in KINDS.values()) else out
    with whole_folder(place) as folder:
        error.layout.image.save(folder / "layout.png")
        found = {f"{i}-" + re.sub(r"[^\w-]", "_", r.class_name): r for i, r in enumerate(error.regions)}
        _write_masks(found, folder)
        facts = {"missing": str(error), "regions": [_region(name, region) for name, region in found.items()]}
        (folder / "missing.json").write_text(json.dumps(facts, indent=2) + "\n")
    return place


def png(picture: Picture) -> bytes:
    """The picture as PNG, its scene, versions and hashes inside: the same scene gives the same bytes."""
    facts: dict[str, Any] = {"scene": dump(picture.scene), "concepts": dict(picture.concepts)}
    facts |= {"versions": dict(picture.versions)}
    if picture.plan is not None and picture.plan.edited:
        facts["edited"] = True
    info = PngInfo()
    info.add_text("costars", json.dumps(facts, sort_keys=True))
    info.add_text("parameters", parameters(picture))
    buffer = BytesIO()
    picture.image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def parameters(picture: Picture) -> str:
    """The text chunk that A1111 and its kin read."""
    scene = picture.scene
    lines = [scene.prompt.replace("{", "").replace("}", "")]
    if scene.negative_prompt:
        lines.append(f"Negative prompt: {scene.negative_prompt}")
    width, height = picture.image.size
    lines.append(
        f"Steps: {scene.steps}, Sampler: {scene.scheduler}, CFG scale: {scene.guidance_scale}, Seed: {scene.seed}, "
        f"Size: {width}x{height}, Model hash: {picture.versions['model_sha256'][:10]}, "
        f"Model: {Path(scene.model).name}, Version: costars {picture.versions['costars']}"
    )
    return "\n".join(lines)


def dump(scene: Scene) -> dict[str, Any]:
    """The scene as plain data, absolute paths cut to their file names."""
    return with_files(scene, lambda _, name: _without_folders(name))


def _without_folders(value: str) -> str:
    path = Path(value).expanduser()
    return path.name if path.is_absolute() else value


def _region(name: str, region: Region) -> dict[str, Any]:
    return {
        "name": name,
        "class_name": region.class_name,
        "box": [round(v, 4) for v in region.box],
        "score": round(region.score, 4),
        "depth": region.depth,
        "area": round(region.area, 4),
    }


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 3) for key, value in seconds.items()}


# What the layout and its regions were made from: to change one of these, plan the scene again.
LAYOUT_FIELDS = (
    "prompt",
    "negative_prompt",
    "size",
    "seed",
    "steps",
    "guidance_scale",
    "scheduler",
    "segmenter",
    "lowest_score",
    "checkpoint",
    "clip_skip",
    "style",
    "controls",
)


def _drawn_from(scene: Scene) -> dict[str, Any]:
    data: dict[str, Any] = scene.model_dump(mode="json")
    told = ("where", "class_name", "segment_phrase")
    places = {name: [member[key] for key in told] for name, member in data["cast"].items()}
    return {field: data[field] for field in LAYOUT_FIELDS} | {" and ".join(told): places}


def same_layout(one: Scene, other: Scene) -> bool:
    """Whether both scenes have the same layout and regions."""
    return one.model == other.model and _drawn_from(one) == _drawn_from(other)


def _check_drawn_from(before: Mapping[str, Any], scene: Scene, origin: str = "") -> None:
    """Raises SceneError for a change that the layout does not show."""
    now = json.loads(json.dumps(_drawn_from(scene)))
    for field, value in now.items():
        if before.get(field) != value:
            raise SceneError(
                f"{origin}{field}: the plan was drawn with {before.get(field)!r}, now it is {value!r}; "
                "plan the scene again"
            )


def with_scene(plan: Plan, scene: Scene) -> Plan:
    """The plan under changed settings; depths given in the scene are taken over.

    Raises SceneError for a change that the layout does not show.
    """
    if plan.scene.model != scene.model:
        raise SceneError(f"model: the plan was drawn by {plan.scene.model!r}; plan the scene again")
    _check_drawn_from(json.loads(json.dumps(_drawn_from(plan.scene))), scene)
    if any(member.depth is not None for member in scene.cast.values()):
        order = depth_order(plan.regions, scene.cast)
        regions = {name: replace(region, depth=order.index(name)) for name, region in plan.regions.items()}
        return replace(plan, scene=scene, regions=regions)
    return replace(plan, scene=scene)
