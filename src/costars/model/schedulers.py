"""Schedulers by the names that people know: diffusers' classes, and samplers as AUTOMATIC1111 calls them."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from diffusers import schedulers as diffusers_schedulers

from costars.errors import SceneError, nearest

_ODE, _SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
# Spacings that a name does not say are not asked for, whatever the checkpoint's own scheduler has.
_UNSAID = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
# A sampler's name, with the class of diffusers that takes its steps and how that is set.
SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpm": ("DPMSolverMultistepScheduler", _ODE),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", _ODE),
    "dpm++ 2m sde": ("DPMSolverMultistepScheduler", _SDE),
    "dpm++ 2m sde heun": ("DPMSolverMultistepScheduler", {**_SDE, "solver_type": "heun"}),
    "dpm++ sde": ("DPMSolverSinglestepScheduler", _SDE),
    "dpm++ 2s": ("DPMSolverSinglestepScheduler", _ODE),
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
}
# What may follow a sampler's name: how the noise levels are spaced.
SPACINGS: Mapping[str, Mapping[str, Any]] = {
    " karras": {"use_karras_sigmas": True},
    " exponential": {"use_exponential_sigmas": True},
    " beta": {"use_beta_sigmas": True},
    " sgm uniform": {"timestep_spacing": "trailing"},  # Turbo, Lightning, Hyper
}
# Classes of diffusers that go by their own names alone, and draw text to image from a checkpoint's noise levels.
ALSO = ("DEISMultistepScheduler", "SASolverScheduler", "TCDScheduler")
_NO_MEMORY = (
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
)


def scheduler_of(name: str, own: Any) -> Any:
    """The scheduler of this name with the checkpoint's noise levels; "checkpoint" is its own.

    Raises SceneError for a name that is not known, or a spacing or noise levels that this sampler does not have.
    """
    if name == "checkpoint":
        return own
    asked = name.lower().strip()
    spacing = next((s for s in SPACINGS if asked.endswith(s)), "")
    sampler = asked.removesuffix(spacing)
    kind, options = SAMPLERS.get(sampler, (name, {}))
    scheduler = getattr(diffusers_schedulers, kind, None)
    classes = {*(known for known, _ in SAMPLERS.values()), *ALSO}
    if kind not in classes or scheduler is None:
        known = ["checkpoint", *SAMPLERS, *("dpm++ 2m" + spaced for spaced in SPACINGS), *ALSO]
        raise SceneError(f"scheduler: {name!r} is not known; {nearest(asked, known)}")
    spaced, has = SPACINGS.get(spacing, {}), set(signature(scheduler).parameters)
    if not set(spaced) <= has:
        raise SceneError(f"scheduler: {sampler!r} has no{spacing} spacing; leave it out")
    if own.config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in has:
        raise SceneError(
            f"scheduler: {name!r} cannot begin at pure noise, as this checkpoint does (rescale_betas_zero_snr); "
            "use checkpoint, ddim, euler, euler a, dpm++ 2m or unipc"
        )
    unsaid = {key: value for key, value in _UNSAID.items() if key in has and sampler in SAMPLERS}
    return scheduler.from_config(own.config, **{**unsaid, **options, **spaced})


def history(scheduler: Any, start: int) -> int:
    """How many of the steps before start a scheduler must have seen to go on from there."""
    kind = type(scheduler).__name__
    if kind in _NO_MEMORY:
        return 0
    if kind == "DPMSolverMultistepScheduler":
        return min(start, int(scheduler.config["solver_order"]) - 1)
    return start  # every step: what else it keeps is its own affair
