"""What a single file states about its model: markers, metadata, and what contradicts what."""

import pytest
import torch
from diffusers import DDIMScheduler

from costars.errors import ModelError
from costars.model.checkpoint_statements import StatedFile, read_statements
from costars.model.families import SD2, SD15, SDXL

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def read(tensors=(), metadata=None, family=SDXL, chosen=None):
    values = dict(tensors)
    return read_statements(
        StatedFile(
            what="model 'mine'",
            family=family,
            keys=frozenset(values),
            metadata=metadata or {},
            read=values.__getitem__,
            chosen=chosen,
            scheduler=NOISE,
        )
    )


EMPTY = torch.zeros(0)


@pytest.mark.parametrize(
    ("tensors", "metadata", "expected"),
    [
        ({}, {}, None),
        ({"v_pred": EMPTY}, {}, "v_prediction"),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ({}, {"modelspec.prediction_type": "v_prediction"}, "v_prediction"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ({}, {"modelspec.prediction_type": "None"}, None),
        ({}, {"modelspec.predict_key": "v"}, "v_prediction"),
        ({}, {"modelspec.predict_key": "epsilon"}, "epsilon"),
        ({}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ({}, {"ss_v_parameterization": "True"}, "v_prediction"),
        ({}, {"ss_v_parameterization": "False"}, "epsilon"),
        ({"v_pred": EMPTY}, {"modelspec.predict_key": "v", "modelspec.prediction_type": "v"}, "v_prediction"),
    ],
)
def test_prediction_is_read_wherever_it_is_stated(tensors, metadata, expected):
    stated = read(tensors, metadata, family=SD2)
    assert stated.scheduler.get("prediction_type") == expected and stated.notes == ()


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"v_pred": EMPTY}, {"modelspec.prediction_type": "epsilon"}),
        ({}, {"modelspec.prediction_type": "v", "modelspec.predict_key": "epsilon"}),
        ({}, {"modelspec.prediction_type": "v", "ss_v_parameterization": "False"}),
    ],
)
def test_contradiction_is_an_error_unless_the_user_decides(tensors, metadata):
    with pytest.raises(ModelError, match=r"^model 'mine': its file contradicts itself .* set checkpoint.prediction"):
        read(tensors, metadata)
    stated = read(tensors, metadata, chosen="epsilon")
    assert stated.scheduler["prediction_type"] == "epsilon"
    assert "checkpoint.prediction epsilon is used, although its file states" in stated.notes[0]


@pytest.mark.parametrize("value", ["sample", "edm", "flow"])
def test_unknown_prediction_is_rejected_by_name(value):
    with pytest.raises(ModelError, match=f"states modelspec.prediction_type='{value}', known are epsilon and v"):
        read(metadata={"modelspec.prediction_type": value})
    assert read(metadata={"modelspec.prediction_type": value}, chosen="epsilon").scheduler == {
        "prediction_type": "epsilon"
    }


def alphas(rescaled):
    return DDIMScheduler(**NOISE, rescale_betas_zero_snr=rescaled).alphas_cumprod


def sigmas(rescaled):
    """The noise levels of alphas in EDM's terms, from the least to the most noise."""
    shares = alphas(rescaled)
    return ((1 - shares) / shares).sqrt()


@pytest.mark.parametrize(
    ("tensors", "metadata", "expected"),
    [
        ({}, {}, False),
        ({"ztsnr": EMPTY}, {}, True),
        ({}, {"ss_zero_terminal_snr": "True"}, True),
        ({}, {"ss_zero_terminal_snr": "False"}, False),
        ({"alphas_cumprod": alphas(False).half()}, {}, False),
        ({"alphas_cumprod": alphas(False).bfloat16(), "ztsnr": EMPTY}, {}, False),
        ({"alphas_cumprod": alphas(True).half()}, {}, True),
        ({"denoiser.sigmas": sigmas(False).bfloat16()}, {}, False),
        ({"denoiser.sigmas": sigmas(True)}, {}, True),
        ({"model_sampling.sigmas": sigmas(True).flip(0)}, {}, True),
    ],
)
def test_zero_terminal_snr_is_read(tensors, metadata, expected):
    stated = read(tensors, metadata)
    assert stated.scheduler.get("rescale_betas_zero_snr", False) is expected
    assert (stated.scheduler.get("timestep_spacing") == "trailing") is expected and stated.notes == ()


def test_other_noise_levels_are_noted():
    assert (
        "its alphas_cumprod (last 0.5000) is not that of its family"
        in read({"alphas_cumprod": torch.full((1000,), 0.5)}).notes[0]
    )


def test_other_sigmas_are_noted():
    assert "its denoiser.sigmas (last 0.0099)" in read({"denoiser.sigmas": torch.linspace(0.01, 10, 1000)}).notes[0]


def test_edm_markers_give_scheduler_and_latents():
    stated = read({"edm_mean": torch.arange(4.0).view(1, 4, 1, 1), "edm_std": torch.ones(4)}, chosen=None)
    assert stated.replaces and stated.scheduler["_class_name"] == "EDMDPMSolverMultistepScheduler"
    assert stated.vae == {"latents_mean": [0, 1, 2, 3], "latents_std": [1] * 4, "scaling_factor": 0.5}
    levels = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
    stated = read({**levels, "v_pred": EMPTY, "ztsnr": EMPTY})
    assert (stated.scheduler["sigma_max"], stated.scheduler["prediction_type"]) == (120, "v_prediction")
    assert "rescale_betas_zero_snr" not in stated.scheduler
    with pytest.raises(ModelError, match="lacks the tensor 'edm_std'"):
        read({"edm_mean": torch.zeros(4)})


@pytest.mark.parametrize(
    ("metadata", "family", "expected"),
    [
        ({"modelspec.architecture": "stable-diffusion-v1"}, SDXL, "but its layers are those of SDXL"),
        ({"modelspec.architecture": "Illustrious"}, SDXL, None),
        ({"modelspec.timestep_range": "0,200"}, SDXL, "only on the timesteps 0,200"),
        ({"modelspec.timestep_range": "0,1000"}, SDXL, None),
        ({"modelspec.encoder_layer": "2"}, SD15, "set clip_skip: 2"),
        ({"modelspec.encoder_layer": "2"}, SDXL, None),
        ({"modelspec.encoder_layer": "3"}, SD2, "set clip_skip: 2"),
    ],
)
def test_hints_are_noted(metadata, family, expected):
    notes = read(metadata=metadata, family=family).notes
    assert len(notes) == (expected is not None) and all(expected in note for note in notes)


@pytest.mark.parametrize(
    ("text", "expected"), [("768x768", (768, 768)), ("768", (768, 768)), ("1024x576", (1024, 576)), ("any", None)]
)
def test_resolution_is_read(text, expected):
    assert read(metadata={"modelspec.resolution": text}).resolution == expected
