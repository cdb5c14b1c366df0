"""Weights in 8-bit floating point: with their scales, or refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from costars.errors import ModelError
from costars.files.safetensors_header import Entry
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.quantized_weights import apply_scale, check_marker, find_scales

CPU = torch.device("cpu")
UNET = "model.diffusion_model."
FP8 = torch.float8_e4m3fn
LAYERS = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".mlp.fc1.weight", ".in_layers.2.weight")


def load(path, **options):
    return load_model(Source("mine", path, **options), CPU, torch.float32, 0, "attention")


def marker(found):
    return torch.tensor(list(json.dumps({"format": found}).encode()), dtype=torch.uint8)


def to_float8(tensors, scale_name):
    """(the file that ComfyUI writes, weights that it means), with a scale for each layer, or for each row."""
    stored, meant = dict(tensors), {}
    for number, key in enumerate(k for k in tensors if k.endswith(LAYERS)):
        weight, layer = tensors[key], key.removesuffix(".weight")
        by_row = number % 2 == 1
        scale = (weight.flatten(1).abs().amax(1) if by_row else weight.abs().max()) / 448
        broadcast = scale.view(-1, *[1] * (weight.ndim - 1)) if by_row else scale
        stored[key] = (weight / broadcast).to(FP8)
        stored[f"{layer}.{scale_name}"] = scale.view(-1, 1) if by_row else scale
        meant[key] = stored[key].float() * broadcast
        if scale_name == "weight_scale":
            stored[f"{layer}.comfy_quant"] = marker("float8_e4m3fn")
            stored[f"{layer}.input_scale"] = torch.ones(())
        else:
            stored[f"{layer}.scale_input"] = torch.ones(())
    if scale_name == "scale_weight":
        stored["model.diffusion_model.scaled_fp8"] = torch.zeros(2, dtype=FP8)
    return stored, meant


@pytest.mark.parametrize("scale_name", ["scale_weight", "weight_scale"])
def test_scaled_float8_file_equals_its_weights(sd15, sd15_folder, first_release, tmp_path, scale_name):
    stored, meant = to_float8(first_release(sd15), scale_name)
    save_file(stored, tmp_path / "scaled.safetensors")
    model = load(tmp_path / "scaled.safetensors", config=sd15_folder)
    assert model.info.notes == ()
    ours, theirs = "down_blocks.0.attentions.0.transformer_blocks.0.", UNET + "input_blocks.1.1.transformer_blocks.0."
    layer, text = "encoder.layers.0.mlp.fc1.weight", model.encoders[0].module
    for module, key, stored_key in (
        (model.unet, f"{ours}attn1.to_q.weight", f"{theirs}attn1.to_q.weight"),
        (model.unet, f"{ours}attn1.to_k.weight", f"{theirs}attn1.to_k.weight"),
        (model.unet, "mid_block.resnets.0.conv1.weight", f"{UNET}middle_block.0.in_layers.2.weight"),
        (text, layer, f"cond_stage_model.transformer.text_model.{layer}"),
    ):
        assert torch.equal(module.get_parameter(key), meant[stored_key])
    found = model.unet.state_dict()
    for name, value in sd15.unet.state_dict().items():
        assert torch.allclose(found[name], value, rtol=0.1, atol=1e-2)


def test_float8_without_scale_is_converted(sd15, sd15_folder, first_release, tmp_path):
    tensors = {k: v.to(FP8) if k.endswith(LAYERS) else v.half() for k, v in first_release(sd15).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    unet = load(tmp_path / "model.safetensors", config=sd15_folder).unet
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(unet.state_dict()[key], sd15.unet.state_dict()[key].to(FP8).float())


@pytest.mark.parametrize(("shape", "scale"), [((4, 2), ()), ((4, 2), (1,)), ((4, 2), (4, 1)), ((4, 2, 3, 3), (4,))])
def test_scale_is_of_the_weight_or_of_its_rows(shape, scale):
    weight, values = torch.randn(shape).to(FP8), torch.rand(scale) + 1
    rows = values.reshape(-1).expand(4)
    expected = torch.stack([row.float() * value for row, value in zip(weight, rows, strict=True)])
    assert torch.equal(apply_scale(weight, values), expected)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a.scale_weight": Entry("F32", ())}, "'a.scale_weight' is a scale without a float8 weight 'a.weight'"),
        ({"a.weight_scale": Entry("F32", ()), "a.weight": Entry("F16", (2, 2))}, "is a scale without a float8"),
        ({"a.weight_scale": Entry("F32", (1, 2)), "a.weight": Entry("F8_E4M3", (4, 256))}, "does not scale a weight"),
        ({"a.weight_scale": Entry("U8", ()), "a.weight": Entry("F8_E4M3", (4, 256))}, "does not scale a weight"),
    ],
)
def test_scale_that_does_not_fit_is_rejected(entries, message):
    with pytest.raises(ModelError, match=message):
        find_scales(entries, "model 'mine'")


def test_other_quantized_formats_are_rejected(sd15, sd15_folder, first_release, tmp_path):
    with pytest.raises(ModelError, match=r"states the format 'nvfp4', supported are float8_e4m3fn, float8_e5m2"):
        check_marker("a.comfy_quant", marker("nvfp4"), "model 'mine'")
    with pytest.raises(ModelError, match="states the format 'unreadable'"):
        check_marker("a.comfy_quant", torch.zeros(3, dtype=torch.uint8), "model 'mine'")
    tensors = {k: v.to(torch.int8) if k.endswith(LAYERS) else v for k, v in first_release(sd15).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"has the type I8; quantized checkpoints .* are not supported; use a release"):
        load(tmp_path / "model.safetensors", config=sd15_folder)
