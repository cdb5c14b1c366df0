"""Folders of a checkpoint: complete ones are opened, missing and damaged parts are named."""

from pathlib import Path

import pytest
import torch

from costars.errors import ModelError
from costars.model.hub import Source
from costars.model.load import load_model

CPU = torch.device("cpu")


def load(folder: Path):
    return load_model(Source("mine", folder), CPU, torch.float32, 0, "attention")


def test_folder_without_index_is_rejected(tmp_path):
    with pytest.raises(ModelError, match=r"model 'mine': no model_index.json there; want 'builtin', a diff"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "text_encoder_2", "tokenizer_2", "scheduler"])
def test_missing_part_is_named(linked, part):
    (linked / part).unlink()
    with pytest.raises(ModelError, match=f"but {part} is missing"):
        load(linked)


@pytest.mark.parametrize(
    ("part", "file", "content"),
    [
        ("unet", "diffusion_pytorch_model.safetensors", b"not a safetensors file"),
        ("text_encoder", "model.safetensors", b"\x00" * 64),
        ("vae", "config.json", b"{"),
        ("tokenizer", "vocab.json", b"{"),
        ("scheduler", "scheduler_config.json", b"{"),
        ("scheduler", "scheduler_config.json", b"{}"),
    ],
)
def test_damaged_part_is_rejected_in_one_line(linked, part, file, content, copy_part):
    (copy_part(linked, part) / file).write_bytes(content)
    with pytest.raises(ModelError, match="model 'mine'") as caught:
        load(linked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "file"), [("scheduler", "scheduler_config.json"), ("unet", "diffusion_pytorch_model.safetensors")]
)
def test_missing_file_is_rejected_in_one_line(linked, part, file, copy_part):
    (copy_part(linked, part) / file).unlink()
    with pytest.raises(ModelError, match="model 'mine'") as caught:
        load(linked)
    assert "\n" not in str(caught.value)


def test_damaged_index_is_rejected(linked):
    (linked / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="model 'mine'"):
        load(linked)
