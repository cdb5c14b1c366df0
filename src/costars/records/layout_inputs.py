"""The fields of a scene that its layout depends on: if one changes, the scene is planned again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from costars.errors import SceneError
from costars.scene.defaults import fill_defaults
from costars.scene.scene import Scene
from costars.segment.match_cast import order_by_depth
from costars.types import Plan

# The layout and its regions are made from these.
LAYOUT_FIELDS = (
    "prompt",
    "negative_prompt",
    "emphasis",
    "force_zeros_for_empty_prompt",
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


def layout_inputs(scene: Scene) -> dict[str, Any]:
    """The fields of a scene that its layout and regions depend on, as plain data."""
    data: dict[str, Any] = scene.model_dump(mode="json")
    keys = ("where", "class_name", "segment_phrase")
    places = {name: [member[key] for key in keys] for name, member in data["cast"].items()}
    return {field: data[field] for field in LAYOUT_FIELDS} | {" and ".join(keys): places}


def same_layout(one: Scene, other: Scene) -> bool:
    """Whether both scenes have the same layout and regions."""
    return one.model == other.model and layout_inputs(one) == layout_inputs(other)


def check_layout_inputs(before: Mapping[str, Any], scene: Scene, origin: str = "") -> None:
    """Raises SceneError for a change that needs another layout."""
    now = json.loads(json.dumps(layout_inputs(scene)))
    for field, value in now.items():
        if before.get(field) != value:
            raise SceneError(
                f"{origin}{field}: the plan was drawn with {before.get(field)!r}, now it is {value!r}; "
                "plan the scene again"
            )


def with_scene(plan: Plan, scene: Scene) -> Plan:
    """The plan with a changed scene; depths of the scene replace those of the plan.

    Raises SceneError for a change that needs another layout.
    """
    scene = fill_defaults(scene)
    if plan.scene.model != scene.model:
        raise SceneError(f"model: the plan was drawn by {plan.scene.model!r}; plan the scene again")
    check_layout_inputs(json.loads(json.dumps(layout_inputs(plan.scene))), scene)
    if any(member.depth is not None for member in scene.cast.values()):
        order = order_by_depth(plan.regions, scene.cast)
        regions = {name: replace(region, depth=order.index(name)) for name, region in plan.regions.items()}
        return replace(plan, scene=scene, regions=regions)
    return replace(plan, scene=scene)
