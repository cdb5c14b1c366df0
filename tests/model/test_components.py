"""One component of a folder: which weight files are read, and what is wrong with broken ones."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from costars.errors import ModelError
from costars.model.components import list_unused_weights
from costars.model.hub import Source
from costars.model.load import load_model

CPU = torch.device("cpu")


def load(folder: Path):
    return load_model(Source("mine", folder), CPU, torch.float32, 0, "attention")


@pytest.mark.parametrize(("part", "file"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_part_without_safetensors_is_named(linked, capfd, part, file, copy_part):
    path = copy_part(linked, part) / f"{file}.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelError, match=rf"^model 'mine': its {part} has only a pickle \({file}.bin\), which can run"):
        load(linked)
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match=rf"^model 'mine': its {part} has no weights; use a release with .safetensors"):
        load(linked)
    assert capfd.readouterr().err == ""


def test_damaged_weight_file_is_rejected(linked, copy_part):
    path = copy_part(linked, "unet") / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        ModelError, match=r"loaded \(unet/diffusion_pytorch_model.safetensors: not a .*; download it again$"
    ):
        load(linked)
    path.write_bytes(b"<!DOCTYPE html><html>log in</html>")
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model.safetensors: is a web page"):
        load(linked)


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ],
)
def test_missing_weights_are_rejected(linked, part, file, copy_part):
    path = copy_part(linked, part) / file
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="model 'mine'"):
        load(linked)


@pytest.mark.parametrize(
    ("part", "file", "key"),
    [
        ("unet", "diffusion_pytorch_model", "down_blocks.0.resnets.0.conv3.weight"),
        ("unet", "diffusion_pytorch_model", "mid_block.attentions.0.proj_in.scale_weight"),
        ("vae", "diffusion_pytorch_model", "decoder.extra.weight"),
        ("text_encoder", "model", "text_model.encoder.layers.7.mlp.fc1.weight"),
    ],
)
def test_layers_that_nobody_reads_are_rejected(linked, part, file, key, copy_part):
    path = copy_part(linked, part) / f"{file}.safetensors"
    save_file({**load_file(path), key: torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=rf"^model 'mine': cannot be loaded \({part} has 1 tensor, the first is .* no lay"
    ):
        load(linked)


def test_quantized_weights_are_rejected(linked, copy_part):
    path = copy_part(linked, "unet") / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "conv_out.bias": tensors["conv_out.bias"].to(torch.int8)}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"has quantized weights \(1 tensor, the first is 'conv_out.bias'\)"):
        load(linked)


def test_useless_tensors_of_a_text_encoder_are_not_read(linked, copy_part):
    path = copy_part(linked, "text_encoder") / "model.safetensors"
    useless = ("vision_model.pre_layrnorm.weight", "logit_scale", "text_model.embeddings.position_ids")
    save_file({**load_file(path), **{key: torch.zeros(1) for key in useless}}, path, metadata={"format": "pt"})
    assert load(linked).info.notes == ()


def test_unused_weights_are_variants_and_shards():
    whole, half = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"
    pieces = [f"text_encoder/model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    alone = ["vae/diffusion_pytorch_model.bf16.safetensors", "vae/config.json"]
    files = [whole, half, "text_encoder/model.safetensors", *pieces, *alone, "sd_xl_base_1.0.safetensors"]
    assert list_unused_weights(files) == [half, *pieces]
