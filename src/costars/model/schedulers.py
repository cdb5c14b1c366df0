"""Schedulers by name: classes of diffusers, and samplers by their names in AUTOMATIC1111 and ComfyUI."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
    " simple": {"timestep_spacing": "trailing"},  # ComfyUI
    " normal": {"timestep_spacing": "linspace"},  # ComfyUI
    " uniform": {"timestep_spacing": "linspace"},  # AUTOMATIC1111
}
# Samplers whose linspace has both ends, as `normal` in ComfyUI; that of the other classes leaves out the last timestep.
_WITH_BOTH_ENDS = ("euler", "euler a", "heun", "lms", "dpm2", "dpm2 a", "ddim")
# {words of another program: ours}, in this order, on names with single blanks
_WORDS: Sequence[tuple[str, str]] = (
    ("dpmpp", "dpm++"),  # ComfyUI, InvokeAI
    (" gpu", ""),  # ComfyUI: where the noise is drawn
    (" ancestral", " a"),  # ComfyUI
    ("kdpm 2", "dpm2"),  # InvokeAI
    ("dpm 2", "dpm2"),  # ComfyUI
    ("pndm", "plms"),  # InvokeAI
)
# {sampler or spacing of another program that is not available: the nearest one that is}
_NEAREST: Mapping[str, str] = {
    "dpm++ 2s a": "dpm++ 2s",
    "dpm++ 3m sde": "dpm++ 2m sde",
    "dpm fast": "dpm++ 2m",
    "dpm adaptive": "dpm++ 2m",
    "restart": "heun",
    "heunpp2": "heun",
    "uni pc": "unipc",
    "uni pc bh2": "unipc",
    "ipndm": "plms",
    "ipndm v": "plms",
    "deis": "DEISMultistepScheduler",
    "sa solver": "SASolverScheduler",
    "res multistep": "dpm++ 2m",
    "euler cfg pp": "euler",
    "euler a cfg pp": "euler a",
    "dpm++ 2m cfg pp": "dpm++ 2m",
    "ddim cfg++": "ddim",
}
_NO_SUCH_SPACING = (
    " ddim uniform",
    " kl optimal",
    " linear quadratic",
    " polyexponential",
    " align your steps",
    " automatic",
)
# Classes of diffusers without a sampler name that can sample with a checkpoint's noise levels.
MORE_CLASSES = ("DEISMultistepScheduler", "SASolverScheduler", "TCDScheduler")
SUPPORTED_CLASSES = frozenset((*(kind for kind, _ in SAMPLERS.values()), *MORE_CLASSES))
# Schedulers of models in the parametrization of Karras et al. 2022, arXiv 2206.00364 (EDM), whose networks read other
# inputs and predict something else than those of all other schedulers.
EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
# Settings of a checkpoint's scheduler that say how its network was trained, not how it is sampled.
_NOISE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
_SINGLE_STEP = (
    "EDMEulerScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
)


def make_scheduler(name: str, own: Any) -> Any:
    """The scheduler of this name with the noise levels of the checkpoint's; "checkpoint" is the checkpoint's own.

    A name is a sampler's in AUTOMATIC1111 or ComfyUI with a spacing, or a class of diffusers. Raises SceneError for an
    unknown name, and for a spacing or noise levels that the sampler does not support.
    """
    if name == "checkpoint":
        return own
    if is_edm(own):
        return _make_edm_scheduler(name, own)
    requested = _normalize_name(name)
    spacing = next((s for s in SPACINGS if requested.endswith(s)), "")
    sampler = requested.removesuffix(spacing)
    kind, options = SAMPLERS.get(sampler, (name.strip(), {}))
    scheduler = getattr(diffusers_schedulers, kind, None)
    if kind not in SUPPORTED_CLASSES or scheduler is None:
        raise SceneError(f"scheduler: {name!r} {_describe_unknown(requested, sampler, spacing)}")
    settings, supported = SPACINGS.get(spacing, {}), set(signature(scheduler).parameters)
    is_linear = settings.get("timestep_spacing") == "linspace"
    if not set(settings) <= supported or (is_linear and sampler not in _WITH_BOTH_ENDS):
        raise SceneError(f"scheduler: {sampler!r} has no{spacing} spacing; leave it out")
    _check_noise_levels(name, own.config, supported)
    defaults = {key: value for key, value in _NO_SPACING.items() if key in supported and sampler in SAMPLERS}
    try:
        return scheduler.from_config(own.config, **{**defaults, **options, **settings})
    except (NotImplementedError, ValueError) as error:
        raise SceneError(
            f"scheduler: {name!r} cannot use the checkpoint's settings ({error}); use checkpoint"
        ) from None


def is_edm(scheduler: Any) -> bool:
    """Whether the checkpoint of this scheduler has a network in EDM's parametrization."""
    return type(scheduler).__name__ in EDM_CLASSES


def _normalize_name(name: str) -> str:
    """A sampler's name as in AUTOMATIC1111, in lower case; "dpmpp_2m_sde_gpu_karras" is "dpm++ 2m sde karras"."""
    words = " ".join(name.lower().replace("_", " ").split())
    for theirs, ours in _WORDS:
        words = words.replace(theirs, ours)
    return f"{words[:-2]} karras" if words.endswith(" k") else words  # InvokeAI


def _describe_unknown(requested: str, sampler: str, spacing: str) -> str:
    """The end of the error message for a name that is not in the tables."""
    if ending := next((s for s in _NO_SUCH_SPACING if requested.endswith(s)), None):
        spacings = ", ".join(s.strip() for s in SPACINGS)
        return f"is not available: there is no{ending} spacing; use {requested.removesuffix(ending)!r} with {spacings}"
    if near := _NEAREST.get(sampler):
        return f"is not available; the nearest sampler is {near + spacing if near in SAMPLERS else near!r}"
    known = ["checkpoint", *SAMPLERS, *("dpm++ 2m" + suffix for suffix in SPACINGS), *MORE_CLASSES]
    return f"is not known; {nearest(requested, known)}"


def _check_noise_levels(name: str, config: Mapping[str, Any], supported: Collection[str]) -> None:
    """Raises SceneError for a sampler that ignores a setting which the checkpoint's network was trained with."""
    if config.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in supported:
        raise SceneError(
            f"scheduler: {name!r} does not support zero terminal SNR (rescale_betas_zero_snr), which this checkpoint "
            "needs; use checkpoint, ddim, euler, euler a, dpm++ 2m or unipc"
        )
    ignored = [key for key in _NOISE_KEYS if config.get(key) is not None and key not in supported]
    if ignored:
        raise SceneError(
            f"scheduler: {name!r} does not support {ignored[0]} ({config[ignored[0]]!r}), which this checkpoint needs; "
            "use checkpoint, ddim or euler"
        )


def _make_edm_scheduler(name: str, own: Any) -> Any:
    if name.strip() not in EDM_CLASSES:
        raise SceneError(
            f"scheduler: {name!r} cannot sample this checkpoint, whose network is in EDM's parametrization; use "
            f"checkpoint, {' or '.join(EDM_CLASSES)}"
        )
    return getattr(diffusers_schedulers, name.strip()).from_config(own.config)


def count_warmup_steps(scheduler: Any, start: int) -> int:
    """Number of steps before start that the scheduler must run to continue from there."""
    kind = type(scheduler).__name__
    if kind in _SINGLE_STEP:
        return 0
    if kind == "DPMSolverMultistepScheduler":
        return min(start, int(scheduler.config["solver_order"]) - 1)
    return start  # all of them: the state of other schedulers is unknown
