"""Settings of configuration files: used, implied, noted, or refused by name."""

import json
import re

import pytest
import torch

from costars.errors import ModelError
from costars.model.config_rules import check_configs
from costars.model.families import FAMILIES, SD15, SDXL
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.single_file import CONFIGS

CPU = torch.device("cpu")


def configs(family, part="", **changes):
    """The family's released configurations, with changes to one of them."""
    read = {}
    for name in ("unet", "vae", "scheduler", *(e.name for e in family.text_encoders)):
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        read[name] = json.loads((CONFIGS / family.name / name / file).read_text()) | (changes if name == part else {})
    return read


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_released_configurations_are_supported(family):
    assert check_configs(configs(family), family, "model 'mine'") == ()


REFUSED = [
    ("unet", {"time_cond_proj_dim": 256}, "guidance-distilled UNets"),
    ("unet", {"class_embed_type": "timestep"}, "the UNet reads something beside text"),
    ("unet", {"num_class_embeds": 1000}, "num_class_embeds '1000', supported: None"),
    ("unet", {"addition_embed_type": "image"}, "addition_embed_type 'image', supported: 'text_time'"),
    ("unet", {"encoder_hid_dim_type": "text_image_proj"}, "encoder_hid_dim_type"),
    ("unet", {"attention_type": "gated"}, "attention_type"),
    ("unet", {"dual_cross_attention": True}, "its attention is not that of Stable Diffusion"),
    ("unet", {"cross_attention_norm": "group_norm"}, "cross_attention_norm"),
    ("unet", {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
    ("unet", {"down_block_types": ["SimpleCrossAttnDownBlock2D"]}, "down_block_types 'SimpleCrossAttnDownBlock2D'"),
    ("unet", {"_class_name": "UNet3DConditionModel"}, "_class_name 'UNet3DConditionModel'"),
    ("unet", {"quantization_config": {"load_in_4bit": True}}, "quantization_config"),
    ("unet", {"projection_class_embeddings_input_dim": 2560}, "is an SDXL refiner"),
    ("unet", {"projection_class_embeddings_input_dim": 99}, "reads other size ids than SDXL's"),
    ("unet", {"cross_attention_dim": 1280}, "reads text of width 1280, but its text encoders give 2048"),
    ("unet", {"in_channels": 9}, "is an inpainting model"),
    ("unet", {"sample_size": None}, "sample_size 'None' in a config.json: want one whole number"),
    ("unet", {"in_channels": "4"}, "in_channels '4' in a config.json: want one whole number"),
    ("vae", {"_class_name": "AutoencoderTiny"}, "_class_name 'AutoencoderTiny'"),
    ("vae", {"latent_channels": 16}, "reads 4 channels, and the VAE's latents have 16"),
    ("vae", {"shift_factor": 0.1159}, "shift_factor '0.1159'"),
    ("vae", {"latents_mean": [0, 0, 0, 0]}, "has latents_mean without latents_std"),
    ("vae", {"latents_mean": [0, 0], "latents_std": [1, 1]}, "latents_mean '[0, 0]', supported: 4 finite numbers"),
    ("vae", {"latents_mean": [0] * 4, "latents_std": [0] * 4}, "latents_std '[0, 0, 0, 0]'"),
    ("text_encoder", {"model_type": "chinese_clip"}, "model_type 'chinese_clip'"),
    ("text_encoder", {"hidden_size": 1024}, "reads text of width 2048, but its text encoders give 2304"),
    ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name 'FlowMatchEulerDiscreteSche"),
    ("scheduler", {"prediction_type": "sample"}, "prediction_type 'sample'"),
    ("scheduler", {"use_flow_sigmas": True}, "flow matching is not supported"),
    ("scheduler", {"timestep_type": "continuous"}, "timestep_type 'continuous'"),
    ("scheduler", {"thresholding": True}, "it is for models of pixels"),
    (
        "scheduler",
        {"_class_name": "PNDMScheduler", "rescale_betas_zero_snr": True},
        "rescale_betas_zero_snr 'True', supported: False with PNDMScheduler; set its _class_name to DDIMScheduler",
    ),
    ("scheduler", {"variance_type": "learned_range"}, "learned variances are not supported"),
]


@pytest.mark.parametrize(("part", "changes", "message"), REFUSED)
def test_setting_that_is_not_supported_is_named(part, changes, message):
    with pytest.raises(ModelError, match=rf"^model 'mine': .*{re.escape(message)}") as caught:
        check_configs(configs(SDXL, part, **changes), SDXL, "model 'mine'")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler"])
def test_unknown_settings_are_noted(part):
    inert = {"_diffusers_version": "0.1", "ema_unused": None, "decay": 0.9}
    (note,) = check_configs(configs(SD15, part, of_another_release=1, **inert), SD15, "model 'mine'")
    assert note == f"model 'mine': settings of its {part} that are not known and not used: of_another_release"


def edit(folder, part, file, **changes):
    path = folder / part / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_settings_of_a_folder_are_checked_before_its_weights(sd15_folder, copied):
    folder = copied(sd15_folder)
    edit(folder, "unet", "config.json", class_embed_type="projection")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not read")
    with pytest.raises(ModelError, match=r"^model 'mine': unet/config.json has class_embed_type 'projection'"):
        load_model(Source("mine", folder), CPU, torch.float32)
