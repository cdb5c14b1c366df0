"""The public interface: exported names, the schema, and every name that a scene may use."""

import json
import subprocess
import sys

import pytest

import costars
from costars.catalog import METHODS, SEGMENTERS, load_method, load_segmenter, method_options
from costars.scene.options import SEGMENTER_KINDS
from costars.scene.scene import Scene


def test_public_names():
    assert set(costars.__all__) == {
        *("CastMember", "MultiLora", "Scene", "TwoStage", "load_scene"),
        *("ConceptError", "CostarsError", "ModelError", "RegionError", "SceneError", "SettingsError", "TrainError"),
        *("Layout", "Picture", "Plan", "Region", "Segmenter", "Step"),
        *("Studio", "open_studio", "plan_scene", "render_plan", "write_picture"),
        *("TrainConfig", "TrainingResult", "parse_config", "write_concepts"),
        *("METHODS", "Member", "Method", "MethodOptions", "ResolvedScene"),
        *("denoise", "draw_preview", "make_sampler", "member_adapter", "member_path", "one_adapter_per_row"),
        "__version__",
    }
    assert costars.__all__ == sorted(costars.__all__, key=lambda name: (not name.isupper(), name))


@pytest.mark.parametrize("name", costars.__all__)
def test_public_name_can_be_imported(name):
    assert getattr(costars, name) is not None
    assert getattr(costars, name) is getattr(costars, name)


def test_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="module 'costars' has no attribute 'studios'"):
        _ = costars.studios


def test_errors_derive_only_from_costars_error():
    for name in ("ConceptError", "ModelError", "RegionError", "SceneError", "SettingsError", "TrainError"):
        assert getattr(costars, name).__mro__[1:3] == (costars.CostarsError, Exception)


def test_scene_accepts_exactly_the_segmenters_and_methods_of_the_catalog():
    assert {kind.model_fields["name"].default for kind in SEGMENTER_KINDS} == set(SEGMENTERS)
    assert {options.model_fields["name"].default for options in method_options().values()} == set(METHODS)
    assert set(Scene.model_json_schema()["properties"]["method"]["discriminator"]["mapping"]) == set(METHODS)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenter_of_the_catalog_can_be_loaded(name):
    assert callable(load_segmenter(name))


def test_method_of_the_catalog_has_two_stages_or_samples_at_once():
    for method in map(load_method, METHODS):
        assert (method.draw_layout is None) == (method.personalise is None)
        assert (method.sample is None) != (method.personalise is None)


def test_schema_contains_every_field_of_a_scene():
    schema = Scene.model_json_schema()
    assert set(schema["properties"]) == set(Scene.model_fields)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"prompt", "cast"}


def test_printing_the_schema_does_not_import_torch():
    code = "import sys, costars; from costars.cli.main import main; sys.argv = ['costars', 'schema']\ntry: main()\n"
    code += "finally: assert not {'torch', 'diffusers', 'numpy'} & set(sys.modules), 'slow'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["title"] == "Scene"
