"""Put several of your own characters and objects into one picture, and each stays itself."""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costars.errors import ConceptError, CostarsError, ModelError, SceneError
    from costars.methods.multi_lora.options import MultiLora
    from costars.methods.omg.options import TwoStage
    from costars.records.png_metadata import write_picture
    from costars.scene.files import load_scene
    from costars.scene.scene import CastMember, Scene
    from costars.studio import Studio, open_studio
    from costars.types import Layout, Picture, Plan, Region, RegionError, Step

__version__ = _version("costars")

# Loaded when first used: importing torch takes seconds, and `costars schema` needs none of it.
_HOMES = {
    "errors": ("ConceptError", "CostarsError", "ModelError", "SceneError"),
    "methods.multi_lora.options": ("MultiLora",),
    "methods.omg.options": ("TwoStage",),
    "records.png_metadata": ("write_picture",),
    "scene.scene": ("CastMember", "Scene"),
    "scene.files": ("load_scene",),
    "studio": ("Studio", "open_studio"),
    "types": ("Layout", "Picture", "Plan", "Region", "RegionError", "Step"),
}
__all__ = [
    "CastMember",
    "ConceptError",
    "CostarsError",
    "Layout",
    "ModelError",
    "MultiLora",
    "Picture",
    "Plan",
    "Region",
    "RegionError",
    "Scene",
    "SceneError",
    "Step",
    "Studio",
    "TwoStage",
    "__version__",
    "load_scene",
    "open_studio",
    "write_picture",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"costars.{module}"), name)
    raise AttributeError(f"module 'costars' has no attribute {name!r}")
