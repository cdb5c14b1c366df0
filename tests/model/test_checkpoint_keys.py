"""Keys of single files: other names of the same weights, and tensors that nobody reads."""

import pytest
import torch
from safetensors.torch import save_file

from costars.errors import ModelError
from costars.model.checkpoint_keys import is_unused, rename_key, rename_keys
from costars.model.hub import Source
from costars.model.load import load_model

CPU = torch.device("cpu")
UNET = "model.diffusion_model."
LEVELS = ("alphas_cumprod", "sigmas")  # are compared with those that are used


def load(path, **options):
    return load_model(Source("mine", path, **options), CPU, torch.float32, 0, "attention")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (UNET + "out.0.weight", UNET + "out.0.weight"),
        ("module." + UNET + "out.0.weight", UNET + "out.0.weight"),
        (UNET + "_orig_mod.out.0.weight", UNET + "out.0.weight"),
        ("_orig_mod." + UNET + "out.0.weight", UNET + "out.0.weight"),
        (
            "cond_stage_model.transformer.embeddings.token_embedding.weight",
            "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        ),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        ),
    ],
)
def test_names_of_wrappers_and_early_programs_are_read(key, expected):
    assert rename_key(key) == expected


def test_same_tensor_under_two_names_is_rejected():
    with pytest.raises(ModelError, match=r"has the tensor 'a.weight' twice, as 'a.weight' and 'module.a.weight'"):
        rename_keys(["a.weight", "module.a.weight"], "model 'mine'")


UNUSED = (
    "model_ema.diffusion_modelinput_blocks00weight",
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "cond_stage_model.model.transformer.resblocks.23.ln_1.bias",
    "cond_stage_model.transformer.text_projection.weight",
    "conditioner.embedders.1.model.logit_scale",
    "cond_stage_model.model.attn_mask",
    "alphas_cumprod",
    "posterior_mean_coef1",
    "sqrt_recipm1_alphas_cumprod",
    "denoiser.sigmas",
    "first_stage_model.loss.discriminator.main.0.weight",
    "optimizer.state.0.exp_avg",
    "global_step",
)


@pytest.mark.parametrize("key", UNUSED)
def test_useless_tensors_are_known_by_name(key):
    assert is_unused(key)


@pytest.mark.parametrize(
    "key",
    [
        UNET + "input_blocks.1.1.norm.weight",
        "conditioner.embedders.1.model.text_projection",
        "first_stage_model.decoder.conv_in.weight",
        UNET + "label_emb.0.0.weight",
        "xalphas_cumprod",
    ],
)
def test_weights_are_not_useless(key):
    assert not is_unused(key)


def test_file_of_another_spelling_with_useless_tensors_equals_the_plain_one(sd15, sd15_folder, first_release, tmp_path):
    tensors = {}
    for key, value in first_release(sd15).items():
        tensors["module." + key.replace(UNET, UNET + "_orig_mod.").replace("text_model.", "")] = value
    save_file(
        tensors | {key: torch.zeros(1000) for key in UNUSED if not key.endswith(LEVELS)}, tmp_path / "m.safetensors"
    )
    model = load(tmp_path / "m.safetensors", config=sd15_folder)
    assert model.info.notes == ()
    for ours, theirs in ((model.unet, sd15.unet), (model.encoders[0].module, sd15.encoders[0].module)):
        expected = theirs.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize(
    "key",
    [
        UNET + "input_blocks.1.1.transformer_blocks.0.attn3.to_q.weight",
        UNET + "label_emb.0.0.weight",
        UNET + "something.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.2.mlp.fc1.weight",
        "first_stage_model.decoder.mid.block_3.conv1.weight",
        "first_stage_model.quant_conv2.weight",
    ],
)
def test_layer_that_nobody_reads_is_rejected(sd15, sd15_folder, first_release, tmp_path, key):
    save_file(first_release(sd15) | {key: torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"^model 'mine': has layers .* .1 tensor, the first is '{key}'"):
        load(tmp_path / "model.safetensors", config=sd15_folder)


def test_tensor_of_no_part_is_noted(sd15, sd15_folder, first_release, tmp_path):
    save_file(first_release(sd15) | {"extra.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    (note,) = load(tmp_path / "model.safetensors", config=sd15_folder).info.notes
    assert note == "model 'mine': 1 tensor, the first is 'extra.weight': not part of the model, and not read"
