"""The table of contents: what a scene may name, and where it is implemented. To add one, add a line.

The tables hold import paths, so that reading a scene loads neither torch nor a method. A method is a package with
`options.py` (`OPTIONS`, what a scene may set) and `method.py` (`METHOD`, a `costars.methods.method.Method`); a
segmenter is a function `open(machine, **options)` that returns a `costars.types.Segmenter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from costars.methods.method import Method
    from costars.scene.value import MethodOptions
    from costars.types import Segmenter

METHODS: dict[str, str] = {  # may be extended before the first scene is read
    "two_stage": "costars.methods.omg",
    "multi_lora": "costars.methods.multi_lora",
}
SEGMENTERS: Mapping[str, str] = {
    "world": "costars.builtin.segmenter:open_segmenter",
    "attention": "costars.segment.cross_attention:open_segmenter",
    "grounded_sam": "costars.segment.grounded_sam:open_grounded_sam",
    "owl_sam": "costars.segment.grounded_sam:open_owl_sam",
    "clipseg": "costars.segment.clipseg:open_clipseg",
}


def method_options() -> dict[str, type[MethodOptions]]:
    """{method: the class of its options}."""
    return {name: import_module(f"{package}.options").OPTIONS for name, package in METHODS.items()}


def load_method(name: str) -> Method:
    """The implementation of a method."""
    method: Method = import_module(f"{METHODS[name]}.method").METHOD
    return method


def load_segmenter(name: str) -> Callable[..., Segmenter]:
    """The function that opens a segmenter."""
    module, _, function = SEGMENTERS[name].partition(":")
    opened: Callable[..., Segmenter] = getattr(import_module(module), function)
    return opened
