"""Put several of your own characters and objects into one picture, and each stays itself.

The names in `__all__` are the public API. The building blocks of methods (`denoise`, `member_path`, ...) are included.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from costars.threads import bound_spinning as _bound_spinning

if TYPE_CHECKING:
    from costars.catalog import METHODS
    from costars.errors import ConceptError, CostarsError, ModelError, SceneError, SettingsError, TrainError
    from costars.methods.encode import make_sampler
    from costars.methods.method import Method
    from costars.methods.multi_lora.options import MultiLora
    from costars.methods.omg.options import TwoStage
    from costars.methods.paths import member_adapter, member_path
    from costars.model.lora import one_adapter_per_row
    from costars.model.preview import draw_preview
    from costars.pipeline import plan_scene, render_plan
    from costars.records.png_metadata import write_picture
    from costars.resolved_scene import Member, ResolvedScene
    from costars.sample.loop import denoise
    from costars.scene.files import load_scene
    from costars.scene.scene import CastMember, Scene
    from costars.scene.value import MethodOptions
    from costars.studio import Studio, open_studio
    from costars.train.config import TrainConfig, parse_config
    from costars.train.results import TrainingResult, write_concepts
    from costars.types import Layout, Picture, Plan, Region, RegionError, Segmenter, Step

__version__ = _version("costars")
_bound_spinning()  # torch is loaded after this, unless it was already

# Loaded on first use: importing torch takes seconds, and `costars schema` does not need it.
_HOMES = {
    "catalog": ("METHODS",),
    "errors": ("ConceptError", "CostarsError", "ModelError", "SceneError", "SettingsError", "TrainError"),
    "methods.encode": ("make_sampler",),
    "methods.method": ("Method",),
    "methods.multi_lora.options": ("MultiLora",),
    "methods.omg.options": ("TwoStage",),
    "methods.paths": ("member_adapter", "member_path"),
    "model.lora": ("one_adapter_per_row",),
    "model.preview": ("draw_preview",),
    "pipeline": ("plan_scene", "render_plan"),
    "records.png_metadata": ("write_picture",),
    "resolved_scene": ("Member", "ResolvedScene"),
    "sample.loop": ("denoise",),
    "scene.files": ("load_scene",),
    "scene.scene": ("CastMember", "Scene"),
    "scene.value": ("MethodOptions",),
    "studio": ("Studio", "open_studio"),
    "train.config": ("TrainConfig", "parse_config"),
    "train.results": ("TrainingResult", "write_concepts"),
    "types": ("Layout", "Picture", "Plan", "Region", "RegionError", "Segmenter", "Step"),
}
__all__ = [
    "METHODS",
    "CastMember",
    "ConceptError",
    "CostarsError",
    "Layout",
    "Member",
    "Method",
    "MethodOptions",
    "ModelError",
    "MultiLora",
    "Picture",
    "Plan",
    "Region",
    "RegionError",
    "ResolvedScene",
    "Scene",
    "SceneError",
    "Segmenter",
    "SettingsError",
    "Step",
    "Studio",
    "TrainConfig",
    "TrainError",
    "TrainingResult",
    "TwoStage",
    "__version__",
    "denoise",
    "draw_preview",
    "load_scene",
    "make_sampler",
    "member_adapter",
    "member_path",
    "one_adapter_per_row",
    "open_studio",
    "parse_config",
    "plan_scene",
    "render_plan",
    "write_concepts",
    "write_picture",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"costars.{module}"), name)
    raise AttributeError(f"module 'costars' has no attribute {name!r}")
