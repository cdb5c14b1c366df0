"""Schedulers by name: classes of diffusers, and samplers by their names in AUTOMATIC1111."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

from diffusers import schedulers as diffusers_schedulers

from costars.errors import SceneError, nearest

_ODE, _SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
# Spacings that are off unless the name has them, whatever the checkpoint's scheduler sets.
_NO_SPACING = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
# {sampler: (class of diffusers, its settings)}
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
# {suffix of a sampler's name: settings that space its noise levels}
SPACINGS: Mapping[str, Mapping[str, Any]] = {
    " karras": {"use_karras_sigmas": True},
    " exponential": {"use_exponential_sigmas": True},
    " beta": {"use_beta_sigmas": True},
    " sgm uniform": {"timestep_spacing": "trailing"},  # Turbo, Lightning, Hyper
}
# Classes of diffusers without a sampler name that can sample with a checkpoint's noise levels.
MORE_CLASSES = ("DEISMultistepScheduler", "SASolverScheduler", "TCDScheduler")
_SINGLE_STEP = (
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
)


def make_scheduler(name: str, own: Any) -> Any:
    """The scheduler of this name with the noise levels of the checkpoint's; "checkpoint" is the checkpoint's own.

    Raises SceneError for an unknown name, and for a spacing or noise levels that the sampler does not support.
    """
    if name == "checkpoint":
        return own
    requested = name.lower().strip()
    spacing = next((s for s in SPACINGS if requested.endswith(s)), "")
    sampler = requested.removesuffix(spacing)
    kind, options = SAMPLERS.get(sampler, (name, {}))
    scheduler = getattr(diffusers_schedulers, kind, None)
    classes = {*(known for known, _ in SAMPLERS.values()), *MORE_CLASSES}
    if kind not in classes or scheduler is None:
        known = ["checkpoint", *SAMPLERS, *("dpm++ 2m" + suffix for suffix in SPACINGS), *MORE_CLASSES]
        raise SceneError(f"scheduler: {name!r} is not known; {nearest(requested, known)}")
    settings, supported = SPACINGS.get(spacing, {}), set(signature(scheduler).parameters)
    if not set(settings) <= supported:
        raise SceneError(f"scheduler: {sampler!r} has no{spacing} spacing; leave it out")
    if own.config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in supported:
        raise SceneError(
            f"scheduler: {name!r} does not support zero terminal SNR (rescale_betas_zero_snr), which this checkpoint "
            "needs; use checkpoint, ddim, euler, euler a, dpm++ 2m or unipc"
        )
    defaults = {key: value for key, value in _NO_SPACING.items() if key in supported and sampler in SAMPLERS}
    return scheduler.from_config(own.config, **{**defaults, **options, **settings})


def count_warmup_steps(scheduler: Any, start: int) -> int:
    """Number of steps before start that the scheduler must run to continue from there."""
    kind = type(scheduler).__name__
    if kind in _SINGLE_STEP:
        return 0
    if kind == "DPMSolverMultistepScheduler":
        return min(start, int(scheduler.config["solver_order"]) - 1)
    return start  # all of them: the state of other schedulers is unknown
