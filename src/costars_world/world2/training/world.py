"""The renderer as the training sees it: one value, so that tests can put a cruder world in its place."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

DEFAULT = "costars_world.world2.render.scene"


@dataclass(frozen=True)
class World:
    """What the training needs of a renderer.

    sample_scene(seed, size_px=(w, h), cast=None, truth=True) draws a scene; sample_identity(rng, class_name)
    an inhabitant; attributes is {class: {attribute: values}}; words are all that captions can hold; objects
    are the classes that a figure may hold or carry; styles are those that are not held out.
    """

    sample_scene: Callable[..., Any]
    sample_identity: Callable[[random.Random, str], Any]
    attributes: Mapping[str, Mapping[str, Sequence[str]]]
    words: tuple[str, ...]
    objects: tuple[str, ...]
    styles: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in their order in the nets' outputs."""
        return tuple(self.attributes)


def load_world(module_name: str = DEFAULT) -> World:
    """The renderer of this module; helpers that the module lacks are looked for beside it (identity)."""
    scene = import_module(module_name)
    beside = [scene]
    if module_name == DEFAULT:
        beside.append(import_module(module_name.rsplit(".", 1)[0] + ".identity"))
    styles = tuple(_find(beside, "STYLES", ("cartoon",)))
    held_out = _find(beside, "HELD_OUT_STYLES", ())
    return World(
        scene.sample_scene,
        _find(beside, "sample_identity"),
        _find(beside, "ATTRIBUTES"),
        tuple(scene.vocabulary()),
        tuple(_find(beside, "OBJECTS", ())),
        tuple(s for s in styles if s not in held_out),
    )


def _find(modules: Sequence[ModuleType], name: str, default: Any = None) -> Any:
    for module in modules:
        if hasattr(module, name):
            return getattr(module, name)
    if default is None:
        raise AttributeError(f"{modules[0].__name__} has no {name}; the training needs it")
    return default
