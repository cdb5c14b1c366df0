"""What a single file states about its model beside the weights: marker tensors and metadata.

Metadata are those of ModelSpec (https://github.com/Stability-AI/ModelSpec), which sd-scripts and ComfyUI write (ComfyUI
with predict_key instead of prediction_type), and the ss_ fields of sd-scripts. Marker tensors are ComfyUI's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from costars.errors import ModelError
from costars.model.families import SD2, SD15, SDXL, Family

EPSILON, VELOCITY = "epsilon", "v_prediction"
_PREDICTIONS: Mapping[str, str] = {
    **dict.fromkeys(("epsilon", "eps", "noise"), EPSILON),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "vpred", "v_pred", "velocity"), VELOCITY),
}
_PREDICTION_FIELDS = ("modelspec.prediction_type", "modelspec.predict_key")
_ARCHITECTURE = "modelspec.architecture"
# Architectures of ModelSpec whose name implies what is predicted.
_PREDICTION_OF_ARCHITECTURE = {"stable-diffusion-v2-768-v": VELOCITY, "stable-diffusion-v2-512": EPSILON}
_FAMILY_OF_ARCHITECTURE = {"stable-diffusion-v1": SD15, "stable-diffusion-v2": SD2, "stable-diffusion-xl": SDXL}
# The layer of the text encoder that each family's releases read, counted from the end.
_RELEASED_LAYER = {SD15.name: 1, SD2.name: 2, SDXL.name: 2}
_V_PRED, _ZERO_SNR = "v_pred", "ztsnr"
_EDM_MEAN, _EDM_STD = "edm_mean", "edm_std"  # Playground v2.5
_EDM_SIGMA_MAX, _EDM_SIGMA_MIN = "edm_vpred.sigma_max", "edm_vpred.sigma_min"  # CosXL
_NOISE_LEVELS = "alphas_cumprod"  # of the first releases
_SIGMAS = ("denoiser.sigmas", "model_sampling.sigmas")  # of SDXL's original code and of ComfyUI
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3  # above bfloat16's rounding, below the step to zero terminal SNR


# Karras et al. 2022, arXiv 2206.00364. Playground v2.5 (arXiv 2402.17245) has the scheduler's defaults in diffusers and
# scales its latents by 0.5; CosXL predicts v with sigma_data 1 on exponential noise levels.
_PLAYGROUND = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "prediction_type": EPSILON,
}
_PLAYGROUND_SCALING = 0.5
_COSXL = {
    "_class_name": "EDMEulerScheduler",
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
    "prediction_type": VELOCITY,
}


@dataclass(frozen=True, kw_only=True)
class Statements:
    """What a file states: settings of its scheduler and of its VAE, and lines for the user.

    replaces says that the scheduler's settings are complete. resolution is (width, height) in px.
    """

    scheduler: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    replaces: bool = False
    resolution: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StatedFile:
    """A single file as its statements are read: its keys, its metadata, and a function that reads one tensor.

    what names the file in errors; chosen is the prediction that the user sets, which wins; scheduler is the
    configuration without the statements.
    """

    what: str
    family: Family
    keys: frozenset[str]
    metadata: Mapping[str, str]
    read: Callable[[str], Tensor]
    chosen: str | None
    scheduler: Mapping[str, Any]


def read_statements(file: StatedFile) -> Statements:
    """What the file states. Raises ModelError for statements that contradict each other or are not supported."""
    notes = tuple(_describe_hints(file))
    resolution = _read_resolution(file.metadata)
    if stated := _read_edm(file):
        scheduler, vae = stated
        return Statements(scheduler=scheduler, vae=vae, replaces=True, resolution=resolution, notes=notes)
    prediction, contradicted = _read_prediction(file)
    zero_snr, other_levels = _read_zero_snr(file)
    scheduler = {} if prediction is None else {"prediction_type": prediction}
    if zero_snr:  # Lin et al. 2023, arXiv 2305.08891
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return Statements(scheduler=scheduler, resolution=resolution, notes=(*contradicted, *other_levels, *notes))


def _read_prediction(file: StatedFile) -> tuple[str | None, tuple[str, ...]]:
    """(the prediction that the file states, notes). The user's choice decides between contradicting statements."""
    stated = dict(_list_predictions(file))
    kinds = sorted(set(stated.values()))
    where = ", ".join(f"{source} ({kind})" for source, kind in stated.items())
    if file.chosen is not None:
        differs = any(kind != file.chosen for kind in kinds)
        note = f"{file.what}: checkpoint.prediction {file.chosen} is used, although its file states {where}"
        return file.chosen, (note,) if differs else ()
    if len(kinds) > 1:
        raise ModelError(
            f"{file.what}: its file contradicts itself about what the UNet predicts: {where}; set "
            "checkpoint.prediction to epsilon or v_prediction"
        )
    return (kinds[0] if kinds else None), ()


def _list_predictions(file: StatedFile) -> Iterator[tuple[str, str]]:
    """(where it is stated, prediction) of every statement."""
    if _V_PRED in file.keys:
        yield f"tensor {_V_PRED}", VELOCITY
    for key in _PREDICTION_FIELDS:
        word = file.metadata.get(key, "").strip()
        if not word or word.lower() == "none":
            continue
        if word.lower() in _PREDICTIONS:
            yield f"{key}={word}", _PREDICTIONS[word.lower()]
        elif file.chosen is None:
            raise ModelError(
                f"{file.what}: its file states {key}={word[:40]!r}, known are epsilon and v; set "
                "checkpoint.prediction to epsilon or v_prediction, or use another checkpoint"
            )
    architecture = file.metadata.get(_ARCHITECTURE, "")
    if architecture in _PREDICTION_OF_ARCHITECTURE:
        yield f"{_ARCHITECTURE}={architecture}", _PREDICTION_OF_ARCHITECTURE[architecture]
    velocity = _read_flag(file.metadata, "ss_v_parameterization")
    if velocity is not None:
        yield f"ss_v_parameterization={velocity}", VELOCITY if velocity else EPSILON


def _read_flag(metadata: Mapping[str, str], key: str) -> bool | None:
    """True or False as sd-scripts writes it; None if the key is absent or has no such value."""
    return {"true": True, "1": True, "false": False, "0": False}.get(metadata.get(key, "").strip().lower())


def _read_zero_snr(file: StatedFile) -> tuple[bool, tuple[str, ...]]:
    """(whether the file states zero terminal SNR, notes about noise levels that are not used)."""
    stated = _ZERO_SNR in file.keys or bool(_read_flag(file.metadata, "ss_zero_terminal_snr"))
    key, levels = _read_noise_levels(file)
    if levels is None or "beta_schedule" not in file.scheduler:
        return stated, ()
    known = {k: file.scheduler[k] for k in ("beta_start", "beta_end", "beta_schedule") if k in file.scheduler}
    for rescaled in (stated, not stated):
        own = DDIMScheduler(**known, num_train_timesteps=len(levels), rescale_betas_zero_snr=rescaled).alphas_cumprod
        if torch.allclose(levels, own, rtol=_RELATIVE, atol=_ABSOLUTE):
            return rescaled, ()
    note = (
        f"{file.what}: its {key} (last {float(levels[-1]):.4f}) is not that of its family and is not "
        "used; if pictures are noise, give its scheduler's settings with checkpoint.config"
    )
    return stated, (note,)


def _read_noise_levels(file: StatedFile) -> tuple[str, Tensor | None]:
    """(key, the cumulative shares of signal of all timesteps that it states); sigma^2 is (1 - share) / share."""
    if _NOISE_LEVELS in file.keys:
        return _NOISE_LEVELS, file.read(_NOISE_LEVELS).float().flatten()
    key = next((key for key in _SIGMAS if key in file.keys), "")
    sigmas = file.read(key).float().flatten() if key else torch.empty(0)
    return key, 1 / (1 + sigmas.sort().values ** 2) if len(sigmas) else None


def _read_edm(file: StatedFile) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(scheduler, VAE settings) of a network in EDM's parametrization; None for other files."""
    chosen = {} if file.chosen is None else {"prediction_type": file.chosen}
    for pair in ((_EDM_MEAN, _EDM_STD), (_EDM_SIGMA_MAX, _EDM_SIGMA_MIN)):
        if len(missing := [key for key in pair if key not in file.keys]) == 1:
            raise ModelError(f"{file.what}: its file lacks the tensor {missing[0]!r}; download it again")
    if _EDM_MEAN in file.keys:
        mean, std = (file.read(key).float().flatten().tolist() for key in (_EDM_MEAN, _EDM_STD))
        vae = {"latents_mean": mean, "latents_std": std, "scaling_factor": _PLAYGROUND_SCALING}
        return {**_PLAYGROUND, **chosen}, vae
    if _EDM_SIGMA_MAX in file.keys:
        sigma_max, sigma_min = (float(file.read(key)) for key in (_EDM_SIGMA_MAX, _EDM_SIGMA_MIN))
        return {**_COSXL, "sigma_max": sigma_max, "sigma_min": sigma_min, **chosen}, {}
    return None


def _read_resolution(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d{2,5})(?:\s*[x,]\s*(\d{2,5}))?", metadata.get("modelspec.resolution", "").strip())
    return None if found is None else (int(found[1]), int(found[2] or found[1]))


def _describe_hints(file: StatedFile) -> Iterator[str]:
    """Lines about statements that do not change how the file is read."""
    start = f"{file.what}: its file states"
    architecture = file.metadata.get(_ARCHITECTURE, "").lower()
    family = next((f for key, f in _FAMILY_OF_ARCHITECTURE.items() if architecture.startswith(key)), None)
    if family not in (None, file.family):
        yield f"{start} {_ARCHITECTURE}={architecture!r}, but its layers are those of {file.family.title}"
    steps = file.metadata.get("modelspec.timestep_range", "").replace(" ", "")
    if re.fullmatch(r"\d+,\d+", steps) and steps not in ("0,1000", "0,999"):
        yield f"{start} that it is trained only on the timesteps {steps}; all of them are drawn with it"
    layer, released = file.metadata.get("modelspec.encoder_layer", ""), _RELEASED_LAYER[file.family.name]
    if layer.isdecimal() and int(layer) not in (0, released):
        clip_skip = max(1, int(layer) - (1 if file.family is SD2 else 0))  # SD 2's last layer is not in its files
        yield f"{start} modelspec.encoder_layer={layer}, {released} is read; set clip_skip: {clip_skip} for it"
