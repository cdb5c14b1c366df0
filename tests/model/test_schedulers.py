"""Schedulers by name, with the noise levels of the checkpoint."""

import pytest

from costars.errors import SceneError
from costars.model.schedulers import SAMPLERS, make_scheduler


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_uses_the_checkpoints_noise_levels(tiny, name):
    made = make_scheduler(name, tiny.scheduler)
    made.set_timesteps(5)
    assert len(made.timesteps) >= 5
    assert made.config["beta_schedule"] == "scaled_linear" and made.config["steps_offset"] == 1


def test_settings_of_another_sampler_are_not_inherited(tiny):
    own = make_scheduler("DPM++ 2M SDE Karras", tiny.scheduler)
    plain = make_scheduler("DPM++ 2M", own).config
    assert plain["algorithm_type"] == "dpmsolver++" and not plain["use_karras_sigmas"]
    spaced = make_scheduler("DPM++ 2M Exponential", own).config
    assert spaced["use_exponential_sigmas"] and not spaced["use_karras_sigmas"]
    assert make_scheduler("checkpoint", own) is own


def test_spacing_suffix_is_read(tiny):
    assert make_scheduler("DPM++ 2M Karras", tiny.scheduler).config["use_karras_sigmas"]
    assert make_scheduler("Euler SGM Uniform", tiny.scheduler).config["timestep_spacing"] == "trailing"
    assert type(make_scheduler("EulerAncestralDiscreteScheduler", tiny.scheduler)) is type(
        make_scheduler("Euler a", tiny.scheduler)
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [("eular", "'eular' is not known; did you mean 'euler'"), ("DDIM Karras", "'ddim' has no karras spacing")],
)
def test_unknown_scheduler_is_rejected(tiny, name, message):
    with pytest.raises(SceneError, match=message):
        make_scheduler(name, tiny.scheduler)
