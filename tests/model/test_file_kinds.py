"""Files and folders that are no text-to-image checkpoint: the message says what they are and what can be done."""

import json

import pytest
import torch
from safetensors.torch import save_file

from costars.errors import ModelError
from costars.model.file_kinds import check_channels, check_model_index
from costars.model.hub import Source
from costars.model.load import load_model

CPU = torch.device("cpu")
UNET = "model.diffusion_model."
ONE = torch.zeros(1)


def load(path, **options):
    return load_model(Source("mine", path, **options), CPU, torch.float32, 0, "attention")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight", "a LoRA or another adapter, not a checkpoint; use"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "a LoRA or another adapter"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.hada_w1_a", "a LoRA or another adapter"),
        ("emb_params", "a textual inversion, not a checkpoint; use it as a concept"),
        ("<ohwx>", "a textual inversion"),
        ("unet.mid_block.to_k_custom_diffusion.weight", "Custom Diffusion weights"),
        ("decoder.conv_in.weight", "a VAE, not a checkpoint; set it as checkpoint.vae"),
        ("first_stage_model.decoder.up.0.block.0.conv1.weight", "a VAE"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet, not a checkpoint; use it under controls"),
        ("ip_adapter.1.to_k_ip.weight", "an IP-Adapter"),
        ("down_blocks.0.motion_modules.0.norm.weight", "a motion module"),
        (UNET + "double_blocks.0.img_attn.qkv.weight", "a FLUX checkpoint, or one of its design"),
        (UNET + "joint_blocks.0.x_block.attn.qkv.weight", "an SD 3 checkpoint"),
        ("transformer_blocks.0.attn.to_q.weight", "a diffusion transformer"),
        ("blocks.0.attn.qkv.weight", "a diffusion transformer"),
        ("down_blocks.0.resnets.0.conv1.weight", "a UNet in diffusers' layout, not a checkpoint; save it with"),
        ("diffusion_model.input_blocks.0.0.weight", "a UNet without its prefix"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
    ],
)
def test_other_files_are_named(tmp_path, key, message):
    save_file({key: ONE}, tmp_path / "file.safetensors")
    with pytest.raises(ModelError, match=f"^model 'mine': is {message}"):
        load(tmp_path / "file.safetensors")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("conditioner.embedders.0.model.ln_final.weight", "is an SDXL refiner, .*; use the SDXL base checkpoint"),
        ("noise_augmentor.data_mean", "is an SD 2 unCLIP checkpoint"),
        ("depth_model.model.pretrained.cls_token", "is a depth-to-image checkpoint"),
        ("control_model.input_blocks.0.0.weight", "is a checkpoint with a ControlNet in it"),
        (UNET + "input_blocks.1.1.transformer_blocks.0.fuser.linear.weight", "is a GLIGEN checkpoint"),
        ("a.motion_modules.0.weight", "is a checkpoint with motion modules"),
    ],
)
def test_other_models_are_named(tmp_path, key, message):
    cross = {UNET + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(4, 768)}
    save_file({**cross, key: ONE}, tmp_path / "file.safetensors")
    with pytest.raises(ModelError, match=f"^model 'mine': {message}"):
        load(tmp_path / "file.safetensors")


def test_unet_alone_is_named(sd15, first_release, tmp_path):
    unet = {key: value for key, value in first_release(sd15).items() if key.startswith(UNET)}
    save_file(unet, tmp_path / "unet.safetensors")
    with pytest.raises(ModelError, match=r"is a UNet of SD 1.5 alone; save it with its text encoders and VAE"):
        load(tmp_path / "unet.safetensors")


@pytest.mark.parametrize(
    ("channels", "kind"), [(9, "an inpainting model"), (8, "an instruct-pix2pix"), (6, "no text-to-image model")]
)
def test_unet_with_other_channels_is_named(sd15, sd15_folder, copied, first_release, tmp_path, channels, kind):
    with pytest.raises(ModelError, match=f"^model 'mine': is {kind}.* reads {channels} channels"):
        check_channels(channels, 4, "model 'mine'")
    tensors, key = first_release(sd15), UNET + "input_blocks.0.0.weight"
    tensors[key] = torch.zeros(8, channels, 3, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"is {kind}.* reads {channels} channels"):
        load(tmp_path / "model.safetensors", config=sd15_folder)
    folder = copied(sd15_folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": channels}))
    with pytest.raises(ModelError, match=f"is {kind}.* reads {channels} channels"):
        load(folder)


@pytest.mark.parametrize(
    ("index", "parts", "message"),
    [
        ({"_class_name": "FluxPipeline"}, {"transformer", "vae", "text_encoder_2"}, "is a folder of FluxPipeline"),
        ({"requires_aesthetics_score": True}, {"unet", "text_encoder", "text_encoder_2"}, "is an SDXL refiner"),
        ({}, {"unet", "text_encoder_2", "vae"}, "is an SDXL refiner"),
        ({"is_cosxl_edit": True}, {"unet", "text_encoder", "text_encoder_2"}, "is an instruct-pix2pix"),
    ],
)
def test_folders_of_other_models_are_named(index, parts, message):
    with pytest.raises(ModelError, match=f"^model 'mine': {message}"):
        check_model_index(index, parts, "model 'mine'")


def test_parts_that_are_not_used_are_noted():
    known = {"unet", "vae", "scheduler", "safety_checker", "feature_extractor"}
    assert check_model_index({"_class_name": "SomePipeline"}, known, "model 'mine'") == ()
    (note,) = check_model_index({"_class_name": "SomePipeline"}, {*known, "image_encoder"}, "model 'mine'")
    assert note == "model 'mine': parts of SomePipeline that are not used: image_encoder"
