"""Schedulers by name, with the noise levels of the checkpoint, equal to diffusers' pipelines."""

import numpy as np
import pytest
import torch
from diffusers import schedulers as diffusers_schedulers

from costars.errors import ModelError, SceneError
from costars.model.predict import NoiseSchedule
from costars.model.schedulers import EDM_CLASSES, SAMPLERS, SPACINGS, SUPPORTED_CLASSES, make_scheduler
from costars.sample.loop import denoise, prepare_sampler
from costars.types import DenoisingPath

CPU = torch.device("cpu")
SEED, STEPS = 5, 3
# Written down apart from the table under test: class and settings by diffusers' page on schedulers.
# https://huggingface.co/docs/diffusers/api/schedulers/overview
EXPECTED = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++ 2m sde heun": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
    ),
    "dpm++ sde": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++ 2s": ("DPMSolverSinglestepScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "dpm++ 2m karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++ 2m exponential": ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
    "euler beta": ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    "euler sgm uniform": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "euler normal": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "DEISMultistepScheduler": ("DEISMultistepScheduler", {}),
    "SASolverScheduler": ("SASolverScheduler", {}),
}


@pytest.fixture(scope="module")
def reference(sd15_folder):
    """diffusers' own pipeline on the tiny SD 1.5 checkpoint, and the configuration of its scheduler."""
    from diffusers import StableDiffusionPipeline

    made = StableDiffusionPipeline.from_pretrained(sd15_folder, safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return made, made.scheduler.config


def step_seed(index):
    """The seed of the noise that a sampler adds in a step (`Sampler.step`)."""
    return SEED + 1_000_003 * (index + 1)


def sample_with_diffusers(pipeline, scheduler, latents):
    """The last latent of a pipeline whose scheduler draws the same noise as ours."""
    pipeline.scheduler, generator = scheduler, torch.Generator().manual_seed(step_seed(0))

    def reseed(_, index, t, values):
        generator.manual_seed(step_seed(index + 1))
        return values

    return pipeline(
        "a man",
        latents=latents,
        width=64,
        height=64,
        num_inference_steps=STEPS,
        guidance_scale=1.0,
        eta=0.3 if isinstance(scheduler, diffusers_schedulers.TCDScheduler) else 0.0,  # each step's own default
        generator=generator,
        output_type="latent",
        callback_on_step_end=reseed,
    ).images


def sample(model, scheduler):
    plan = prepare_sampler(scheduler, STEPS, CPU, (64, 64), 1.0, seed=SEED)
    *_, step = denoise(model, plan.noise(model), [DenoisingPath("global", model.encode_text("a man"))], plan)
    return step.latent


@pytest.mark.parametrize("name", EXPECTED)
def test_every_sampler_equals_diffusers_pipeline(sd15, reference, name):
    pipeline, config = reference
    kind, options = EXPECTED[name]
    theirs = getattr(diffusers_schedulers, kind).from_config(config, **options)
    expected = sample_with_diffusers(pipeline, theirs, sd15.initial_noise((64, 64), SEED))
    assert torch.allclose(sample(sd15, make_scheduler(name, sd15.scheduler)), expected, atol=2e-4, rtol=1e-4)


def test_no_sampler_is_left_out():
    assert EXPECTED.keys() >= SAMPLERS.keys() and {kind for kind, _ in EXPECTED.values()} == SUPPORTED_CLASSES


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("euler_ancestral", "euler a"),
        ("dpm_2", "dpm2"),
        ("dpm_2_ancestral", "dpm2 a"),
        ("dpmpp_2m", "dpm++ 2m"),
        ("dpmpp_sde", "dpm++ sde"),
        ("dpmpp_2m_sde_karras", "dpm++ 2m sde karras"),
        ("dpmpp_2m_sde_gpu_exponential", "dpm++ 2m sde exponential"),
        ("dpmpp_2m_sde_heun", "dpm++ 2m sde heun"),
        ("euler_sgm_uniform", "euler sgm uniform"),
        ("euler_ancestral_normal", "euler a normal"),
        ("DPM++ 2M SDE Heun Karras", "dpm++ 2m sde heun karras"),
        ("Euler a Uniform", "euler a normal"),
        ("DPM2 a Karras", "dpm2 a karras"),
        ("kdpm_2_a", "dpm2 a"),
        ("dpmpp_2m_k", "dpm++ 2m karras"),
        ("pndm", "plms"),
    ],
)
def test_names_of_other_programs_are_read(tiny, theirs, ours):
    a, b = make_scheduler(theirs, tiny.scheduler), make_scheduler(ours, tiny.scheduler)
    assert type(a) is type(b) and a.config == b.config


@pytest.mark.parametrize("name", ["euler", "euler a", "heun", "lms", "dpm2", "dpm2 a", "ddim"])
@pytest.mark.parametrize(
    ("spacing", "levels"),
    [
        ("normal", np.linspace(999, 0, 5)),  # ComfyUI: both ends of the timesteps
        ("simple", 999 - np.arange(5) * 200),  # ComfyUI: every 200th, from the last one on
    ],
)
def test_spacings_of_comfyui_are_what_it_computes(tiny, name, spacing, levels):
    made = make_scheduler(f"{name} {spacing}", tiny.scheduler)
    made.set_timesteps(5)
    found = made.timesteps.unique().flip(0).numpy()  # second-order samplers have each timestep twice, or one between
    assert all(np.abs(found - level).min() <= 1 for level in levels)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpmpp_2s_ancestral", "is not available; the nearest sampler is 'dpm\\+\\+ 2s'"),
        ("DPM++ 3M SDE Karras", "the nearest sampler is 'dpm\\+\\+ 2m sde karras'"),
        ("uni_pc_bh2", "the nearest sampler is 'unipc'"),
        ("deis", "the nearest sampler is 'DEISMultistepScheduler'"),
        ("euler_cfg_pp", "the nearest sampler is 'euler'"),
        ("Euler KL Optimal", "there is no kl optimal spacing; use 'euler' with karras,"),
        ("dpmpp_2m_normal", "'dpm\\+\\+ 2m' has no normal spacing; leave it out"),
        ("dpmpp_2n", "'dpmpp_2n' is not known; did you mean 'dpm\\+\\+ 2s' or 'dpm\\+\\+ 2m'"),
    ],
)
def test_names_that_are_not_available_get_the_nearest(tiny, name, message):
    with pytest.raises(SceneError, match=message):
        make_scheduler(name, tiny.scheduler)


def test_suggested_samplers_are_in_the_table():
    from costars.model.schedulers import _NEAREST

    assert {*_NEAREST.values()} <= {*SAMPLERS, *SUPPORTED_CLASSES} and not {*_NEAREST} & {*SAMPLERS}
    assert all(spacing.startswith(" ") for spacing in SPACINGS)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "EDMEulerScheduler"},
        {"_class_name": "EDMEulerScheduler", "sigma_data": 1.0, "sigma_schedule": "exponential"},
        {"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "v_prediction"},
    ],
)
def test_edm_samplers_equal_diffusers_pipeline(sd15, reference, config):
    scheduler = getattr(diffusers_schedulers, config["_class_name"]).from_config(config)
    expected = sample_with_diffusers(reference[0], scheduler, sd15.initial_noise((64, 64), SEED))
    assert torch.allclose(sample(sd15, make_scheduler("checkpoint", scheduler)), expected, atol=2e-4, rtol=1e-4)


def test_edm_checkpoint_takes_its_own_samplers_only(tiny):
    own = diffusers_schedulers.EDMEulerScheduler(sigma_max=50.0)
    made = make_scheduler("EDMDPMSolverMultistepScheduler", own)
    assert made.config["sigma_max"] == 50 and type(made).__name__ in EDM_CLASSES
    with pytest.raises(SceneError, match=r"'euler' cannot sample this checkpoint, .* use checkpoint, EDMEulerSch"):
        make_scheduler("euler", own)
    with pytest.raises(SceneError, match="'EDMEulerScheduler' is not known"):
        make_scheduler("EDMEulerScheduler", tiny.scheduler)
    with pytest.raises(ModelError, match=r"training with EDMEulerScheduler .* is not supported; train on a model with"):
        NoiseSchedule.from_scheduler(own)


def test_settings_that_a_sampler_cannot_use_are_rejected():
    own = diffusers_schedulers.DDPMScheduler(beta_schedule="sigmoid")
    with pytest.raises(SceneError, match=r"'lms' cannot use the checkpoint's settings .* use checkpoint"):
        make_scheduler("lms", own)


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
