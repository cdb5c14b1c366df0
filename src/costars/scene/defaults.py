"""What a scene leaves open, filled in by its method and segmenter for its model, and opened again for another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from costars.scene.options import BY_PHRASE
from costars.scene.scene import BUILTIN, Scene

LOWEST_SCORE = 0.3  # of a figure that counts; chosen on the built-in world's held-out renders
STEPS = 50  # the official code of OMG
STEPS_BY_MODEL: Mapping[str, int] = {BUILTIN: 12}  # the fewest that measure as good as 50 (docs/results.md, Steps)


def fill_defaults(scene: Scene) -> Scene:
    """The scene with every open field filled in for its model."""
    own, options = _defaults(scene)
    missing = {key: value for key, value in own.items() if getattr(scene, key) is None}
    left_open = {key: value for key, value in options.items() if getattr(scene.method, key) is None}
    return scene.model_copy(update=missing | {"method": scene.method.model_copy(update=left_open)})


def reopen_defaults(scene: Scene) -> Scene:
    """The scene with every field open that holds its model's default, so that another model fills in its own."""
    own, options = _defaults(scene)
    same = {key: None for key, value in own.items() if getattr(scene, key) == value}
    same_options = {key: None for key, value in options.items() if getattr(scene.method, key) == value}
    return scene.model_copy(update=same | {"method": scene.method.model_copy(update=same_options)})


def _defaults(scene: Scene) -> tuple[dict[str, Any], dict[str, Any]]:
    """Defaults of the scene's fields, and of its method's options."""
    table: Mapping[str, Mapping[str, float]] = getattr(type(scene.method), "DEFAULTS", {})
    values = table.get(scene.model, table.get("", {}))
    own: dict[str, Any] = {key: value for key, value in values.items() if key in Scene.model_fields}
    own["steps"] = STEPS_BY_MODEL.get(scene.model, STEPS)
    own["lowest_score"] = 0.0 if isinstance(scene.segmenter, BY_PHRASE) else LOWEST_SCORE
    return own, {key: value for key, value in values.items() if key not in own}
