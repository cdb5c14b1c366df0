"""Loading: what a model reports about its checkpoint, other VAEs and architectures."""

import hashlib
import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from costars.errors import ModelError
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.prompt_weighting import parse_prompt
from costars.model.schedulers import make_scheduler

CPU = torch.device("cpu")


def load(path, **options):
    return load_model(Source("mine", path, **options), CPU, torch.float32, 0, "attention")


def same(ours, theirs):
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_info_is_read_from_sdxl_folder(tiny):
    info = tiny.info
    assert (info.family, info.size_px, info.cell_px, info.latent_channels) == ("sdxl", (256, 256), 8, 4)
    assert len(info.sha256) == 64


def test_info_is_read_from_sd15_folder(sd15):
    assert (sd15.info.family, sd15.info.size_px, sd15.info.cell_px) == ("sd15", (256, 256), 8)
    assert [e.name for e in sd15.encoders] == ["text_encoder"]
    assert sd15.encode_text("a man").pooled is None


def test_copy_has_same_hash_and_weights(tiny, linked):
    loaded = load(linked)
    assert loaded.info.sha256 == tiny.info.sha256
    assert same(loaded.unet, tiny.unet)


def test_modules_are_frozen_and_in_eval_mode(tiny):
    for part in (tiny.unet, tiny.vae, *(e.module for e in tiny.encoders)):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_libraries_print_no_warnings(sd15_folder, copied, capfd, dtype):
    folder = copied(sd15_folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"of_another_release": 1}))
    model = load_model(Source("mine", folder), CPU, dtype)
    assert [note.rpartition(": ")[2] for note in model.info.notes] == ["of_another_release"]
    model.vae.to(torch.float32)
    make_scheduler("dpm++ 2s", model.scheduler).set_timesteps(7)
    parse_prompt(model.encoders[0].tokenizer, "so " * 100)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_half_precision_variant_is_loaded_if_alone(sd15, sd15_folder, copied, variant):
    folder = copied(sd15_folder)
    for path in list(folder.glob("*/*.safetensors")):
        save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
        path.rename(path.with_name(f"{path.stem}.{variant}.safetensors"))
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"of no use here")
    model = load(folder)
    assert model.unet.dtype is torch.float32
    assert torch.allclose(model.unet.conv_in.weight, sd15.unet.conv_in.weight, atol=1e-3)


def test_vae_file_replaces_vae(sd15, sd15_folder, first_release, tmp_path):
    tensors = first_release(sd15)
    save_file(tensors, tmp_path / "model.safetensors")
    own = {
        k.removeprefix("first_stage_model."): v + 0.5 for k, v in tensors.items() if k.startswith("first_stage_model.")
    }
    save_file(own, tmp_path / "vae.safetensors")
    model = load(tmp_path / "model.safetensors", config=sd15_folder, vae=tmp_path / "vae.safetensors")
    assert torch.equal(model.vae.decoder.conv_out.bias, sd15.vae.decoder.conv_out.bias + 0.5)
    assert model.info.notes == ()
    own = hashlib.sha256((tmp_path / "vae.safetensors").read_bytes()).hexdigest()
    assert model.info.parts_sha256 == {"checkpoint.vae": own}  # the rest is in the one file
    assert not model.vae.training and not any(p.requires_grad for p in model.vae.parameters())


def test_vae_folder_replaces_vae(tiny, golden, sd15, sd15_folder):
    model = load(golden / "tiny-sdxl", vae=sd15_folder)
    assert same(model.vae, sd15.vae) and same(model.unet, tiny.unet)
    (weights,) = (sd15_folder / "vae").glob("*.safetensors")
    hashes = model.info.parts_sha256
    assert set(hashes) == {"model.text_encoder", "model.text_encoder_2", "checkpoint.vae"}
    assert hashes["checkpoint.vae"] == hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (b"<html>", r"cannot be loaded \(vae.safetensors: is a web page"),
        (
            None,
            r"cannot be loaded \(vae has only a pickle \(diffusion_pytorch_model.bin\), which can run code and is no",
        ),
    ],
)
def test_unreadable_vae_is_named_by_field(sd15_folder, tmp_path, wrong, message):
    path = tmp_path / ("vae.safetensors" if wrong else "vae")
    if wrong:
        path.write_bytes(wrong)
    else:
        path.mkdir()
        (path / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(
        ModelError, match=rf"^checkpoint.vae '.*vae.*': {message}.*; want the folder of a diffusers VAE"
    ):
        load(sd15_folder, vae=path)


def test_tiled_decoding(sd15, sd15_folder):
    tiled = load(sd15_folder, tiles=True)
    latent = torch.randn(1, 4, 48, 40, generator=torch.Generator().manual_seed(0))
    whole, parts = sd15.decode(latent), tiled.decode(latent)
    assert tiled.vae.use_tiling and not sd15.vae.use_tiling
    assert parts.size == whole.size == (320, 384) and parts.tobytes() != whole.tobytes()


def test_guidance_distilled_unet_is_rejected(sd15_folder, copied):
    folder = copied(sd15_folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"time_cond_proj_dim": 8}))
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
    unet.save_pretrained(folder / "unet")
    with pytest.raises(ModelError, match=r"guidance-distilled UNets .* are not supported; use the base model with"):
        load(folder)


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: out of memory"), OSError(12, "Cannot allocate memory"), MemoryError()]
)
def test_memory_that_runs_out_is_not_blamed_on_the_files(sd15_folder, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("costars.model.checkpoint_parts.load_component", fail)
    with pytest.raises(MemoryError, match=r"^model 'mine': out of memory while it is loaded"):
        load(sd15_folder)


def test_prediction_of_the_user_wins_with_a_note(sd15_folder):
    model = load(sd15_folder, prediction="v_prediction")
    assert model.scheduler.config["prediction_type"] == "v_prediction"
    note = "model 'mine': checkpoint.prediction v_prediction is used, although its scheduler states epsilon"
    assert model.info.notes == (note,)
    assert load(sd15_folder, prediction="epsilon").info.notes == ()


def test_scheduler_is_corrected_as_in_diffusers_pipeline(sd15_folder, copied):
    from diffusers import StableDiffusionPipeline

    folder = copied(sd15_folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"clip_sample": True, "steps_offset": 0}))
    model = load(folder)
    with pytest.warns(FutureWarning):
        pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    for key in ("clip_sample", "steps_offset"):
        assert model.scheduler.config[key] == pipeline.scheduler.config[key]
    assert [note.partition(" of its")[0] for note in model.info.notes] == [
        "model 'mine': clip_sample True",
        "model 'mine': steps_offset 0",
    ]
