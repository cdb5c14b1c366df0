"""Checkpoints: what a whole one says of itself, and what is wrong with a broken one."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from costars.errors import ModelError, SceneError
from costars.model.hub import Source
from costars.model.load import SDXL_PARTS, load_model

CPU = torch.device("cpu")


@pytest.fixture
def copy(golden, tmp_path) -> Path:
    """A checkpoint to break: links to the parts, so that one may be replaced."""
    folder = tmp_path / "model"
    folder.mkdir()
    for part in SDXL_PARTS:
        (folder / part).symlink_to(golden / "tiny-sdxl" / part)
    shutil.copy(golden / "tiny-sdxl" / "model_index.json", folder)
    return folder


def own(folder: Path, part: str) -> Path:
    """A private copy of one part."""
    source = (folder / part).resolve()
    (folder / part).unlink()
    return Path(shutil.copytree(source, folder / part))


def load(folder: Path):
    return load_model(Source("mine", folder), CPU, torch.float32, 0, "attention")


def test_the_facts_are_read_from_the_checkpoint(tiny):
    facts = tiny.facts
    assert (facts.family, facts.size_px, facts.cell_px, facts.latent_channels) == ("sdxl", (256, 256), 8, 4)
    assert len(facts.sha256) == 64


def test_a_copy_has_the_same_hash_and_weights(tiny, copy):
    loaded = load(copy)
    assert loaded.facts.sha256 == tiny.facts.sha256
    assert all(torch.equal(v, tiny.unet.state_dict()[k]) for k, v in loaded.unet.state_dict().items())


def test_weights_are_frozen_and_modules_evaluate(tiny):
    for part in (tiny.unet, tiny.vae, *(e.module for e in tiny.encoders)):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"model 'mine': no model_index.json there; want 'builtin', a diff"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "text_encoder_2", "tokenizer_2", "scheduler"])
def test_a_missing_part_is_named(copy, part):
    (copy / part).unlink()
    with pytest.raises(ModelError, match=f"but {part} is missing"):
        load(copy)


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
def test_a_damaged_part_is_one_line_of_error(copy, part, file, content):
    (own(copy, part) / file).write_bytes(content)
    with pytest.raises(ModelError, match="model 'mine'") as caught:
        load(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "file"), [("scheduler", "scheduler_config.json"), ("unet", "diffusion_pytorch_model.safetensors")]
)
def test_a_missing_file_is_one_line_of_error(copy, part, file):
    (own(copy, part) / file).unlink()
    with pytest.raises(ModelError, match="model 'mine'") as caught:
        load(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("part", "file"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_a_part_without_weights_that_are_read_is_named_in_one_line(copy, capfd, part, file):
    path = own(copy, part) / f"{file}.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelError, match=rf"^model 'mine': its {part} has only a pickle \({file}.bin\), which may run"):
        load(copy)
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match=rf"^model 'mine': its {part} has no weights; use a release with .safetensors"):
        load(copy)
    assert capfd.readouterr().err == ""


def test_the_weights_of_a_folder_are_held_to_what_their_name_says(copy):
    path = own(copy, "unet") / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        ModelError, match=r"loaded \(unet/diffusion_pytorch_model.safetensors: not a .*; fetch it again$"
    ):
        load(copy)
    path.write_bytes(b"<!DOCTYPE html><html>log in</html>")
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model.safetensors: is a web page"):
        load(copy)


def test_a_damaged_index_is_an_error(copy):
    (copy / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="model 'mine'"):
        load(copy)


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
    ],
)
def test_weights_that_are_not_there_are_never_drawn_at_random(copy, part, file):
    path = own(copy, part) / file
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="model 'mine'"):
        load(copy)


@pytest.mark.parametrize(("size", "wrong", "near"), [((64, 100), "height 100", 96), ((50, 64), "width 50", 48)])
def test_a_size_that_does_not_fit_names_one_that_does(tiny, size, wrong, near):
    with pytest.raises(SceneError, match=f"{wrong} does not fit this model; want a multiple of 8 px, e.g. {near}"):
        tiny.latent_size(size)


def test_sizes_are_width_by_height_outside_and_height_by_width_inside(tiny):
    assert tiny.latent_size((96, 64)) == (8, 12)
    assert tiny.initial_noise((96, 64), 0).shape == (1, 4, 8, 12)
    assert tiny.size_ids((96, 64)).tolist() == [[64, 96, 0, 0, 64, 96]]
    assert tiny.decode(torch.zeros(1, 4, 8, 12)).size == (96, 64)


def test_noise_is_a_function_of_the_seed(tiny):
    assert torch.equal(tiny.initial_noise((64, 64), 1), tiny.initial_noise((64, 64), 1))
    assert not torch.equal(tiny.initial_noise((64, 64), 1), tiny.initial_noise((64, 64), 2))


def test_a_latent_that_is_not_finite_gives_no_picture(tiny):
    with pytest.raises(ModelError, match="not finite; use --dtype float32"):
        tiny.decode(torch.full((1, 4, 8, 8), torch.nan))
