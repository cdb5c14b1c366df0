"""What others build on: the public names, the schema, and that every name in it does something."""

import json
import subprocess
import sys

import pytest

import costars
from costars.catalog import METHODS, SEGMENTERS
from costars.errors import SceneError
from costars.model.schedulers import SAMPLERS, scheduler_of
from costars.scene.options import SEGMENTER_KINDS, MultiLora, TwoStage
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
    assert {kind.model_fields["name"].default for kind in (TwoStage, MultiLora)} == set(METHODS)
    assert set(Scene.model_json_schema()["properties"]["method"]["discriminator"]["mapping"]) == set(METHODS)


def test_a_method_either_draws_a_layout_and_personalises_it_or_samples_at_once():
    for method in METHODS.values():
        assert (method.draw_layout is None) == (method.personalise is None)
        assert (method.sample is None) != (method.personalise is None)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_scheduler_is_made_from_the_checkpoints_own(tiny, name):
    made = scheduler_of(name, tiny.scheduler)
    made.set_timesteps(5)
    assert len(made.timesteps) >= 5
    assert made.config["beta_schedule"] == "scaled_linear" and made.config["steps_offset"] == 1


def test_a_name_says_all_of_a_scheduler_but_its_noise_levels(tiny):
    own = scheduler_of("DPM++ 2M SDE Karras", tiny.scheduler)
    plain = scheduler_of("DPM++ 2M", own).config
    assert plain["algorithm_type"] == "dpmsolver++" and not plain["use_karras_sigmas"]
    spaced = scheduler_of("DPM++ 2M Exponential", own).config
    assert spaced["use_exponential_sigmas"] and not spaced["use_karras_sigmas"]
    assert scheduler_of("checkpoint", own) is own


def test_a_spacing_may_follow_the_samplers_name(tiny):
    assert scheduler_of("DPM++ 2M Karras", tiny.scheduler).config["use_karras_sigmas"]
    assert scheduler_of("Euler SGM Uniform", tiny.scheduler).config["timestep_spacing"] == "trailing"
    assert type(scheduler_of("EulerAncestralDiscreteScheduler", tiny.scheduler)) is type(
        scheduler_of("Euler a", tiny.scheduler)
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [("eular", "'eular' is not known; did you mean 'euler'"), ("DDIM Karras", "'ddim' has no karras spacing")],
)
def test_a_scheduler_that_is_not_there_is_refused(tiny, name, said):
    with pytest.raises(SceneError, match=said):
        scheduler_of(name, tiny.scheduler)


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
