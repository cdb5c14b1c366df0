"""What the tests of the methods share: a layout with a region for each member."""

import pytest

from costars.methods.omg.stages import draw_layout
from costars.resolve import resolve_scene
from costars.types import Plan

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


@pytest.fixture
def planned(concepts, make_scene, make_region, finish):
    """Stage 1 of a scene and half of the picture for each of a and b; returns the plan."""

    def make(model, boxes=(LEFT, RIGHT), scheduler="ddim", **changes):
        scene = make_scene(scheduler=scheduler, **changes)
        layout, _ = finish(draw_layout(resolve_scene(scene, model, concepts)))
        regions = {
            name: make_region(concepts[name].class_name, box, depth=i)
            for i, (name, box) in enumerate(zip(scene.slots(), boxes, strict=True))
        }
        return Plan(scene, layout, regions)

    return make
