"""What others build on: the public names, the schema, and that every name in it does something."""

import json
import subprocess
import sys

import pytest

import costars
from costars.catalog import METHODS, SEGMENTERS, load_method, load_segmenter, method_options
from costars.scene.options import SEGMENTER_KINDS
from costars.scene.scene import Scene


def test_the_public_names_are_these():
    assert set(costars.__all__) == {
        *("CastMember", "MultiLora", "Scene", "TwoStage", "load_scene"),
        *("ConceptError", "CostarsError", "ModelError", "RegionError", "SceneError"),
        *("Layout", "Picture", "Plan", "Region", "Step"),
        *("Studio", "open_studio", "write_picture", "__version__"),
    }
    assert costars.__all__ == sorted(costars.__all__)


@pytest.mark.parametrize("name", costars.__all__)
def test_every_public_name_is_there(name):
    assert getattr(costars, name) is not None
    assert getattr(costars, name) is getattr(costars, name)


def test_a_name_that_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'costars' has no attribute 'studios'"):
        _ = costars.studios


def test_every_error_is_a_costars_error_and_nothing_else():
    for name in ("ConceptError", "ModelError", "RegionError", "SceneError"):
        assert getattr(costars, name).__mro__[1:3] == (costars.CostarsError, Exception)


def test_every_segmenter_and_method_of_a_scene_is_in_the_catalog():
    assert {kind.model_fields["name"].default for kind in SEGMENTER_KINDS} == set(SEGMENTERS)
    assert {options.model_fields["name"].default for options in method_options().values()} == set(METHODS)
    assert set(Scene.model_json_schema()["properties"]["method"]["discriminator"]["mapping"]) == set(METHODS)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_segmenter_of_the_catalog_is_there(name):
    assert callable(load_segmenter(name))


def test_a_method_either_draws_a_layout_and_personalises_it_or_samples_at_once():
    for method in map(load_method, METHODS):
        assert (method.draw_layout is None) == (method.personalise is None)
        assert (method.sample is None) != (method.personalise is None)


def test_the_schema_describes_every_field_that_a_person_writes():
    schema = Scene.model_json_schema()
    assert set(schema["properties"]) == set(Scene.model_fields)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"prompt", "cast"}


def test_importing_costars_and_printing_the_schema_needs_no_torch():
    code = "import sys, costars; from costars.cli.main import main; sys.argv = ['costars', 'schema']\ntry: main()\n"
    code += "finally: assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules), 'slow'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["title"] == "Scene"
