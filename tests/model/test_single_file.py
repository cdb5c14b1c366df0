"""Single files: the same model as the folder, and what is wrong with broken files."""

import pytest
import torch
from safetensors.torch import save_file

from costars.errors import ModelError, SceneError
from costars.model.families import SD2
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.schedulers import make_scheduler
from costars.model.single_file import CONFIGS, load_tokenizer
from costars.sample.loop import denoise, prepare_sampler
from costars.types import DenoisingPath

CPU = torch.device("cpu")


def load(path, **options):
    return load_model(Source("mine", path, **options), CPU, torch.float32, 0, "attention")


def same(ours, theirs):
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_sdxl_file_equals_folder(tiny, golden, first_release, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(tiny), path)
    model = load(path, config=golden / "tiny-sdxl")
    assert model.info.family == "sdxl"
    assert same(model.unet, tiny.unet) and same(model.vae, tiny.vae)
    assert all(same(a.module, b.module) for a, b in zip(model.encoders, tiny.encoders, strict=True))
    text, expected = model.encode_text("photo of a man"), tiny.encode_text("photo of a man")
    assert torch.equal(text.tokens, expected.tokens) and torch.equal(text.pooled, expected.pooled)
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_sd15_file_equals_folder(sd15, sd15_folder, first_release, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(sd15), path)
    model = load(path, config=sd15_folder)
    assert model.info.family == "sd15"
    assert same(model.unet, sd15.unet) and same(model.vae, sd15.vae)
    assert torch.equal(model.encode_text("a man").tokens, sd15.encode_text("a man").tokens)


@pytest.mark.parametrize("missing", ["model.diffusion_model.out.2.bias", "first_stage_model.decoder.conv_out.bias"])
def test_missing_weights_are_rejected(sd15, sd15_folder, first_release, tmp_path, missing):
    tensors = first_release(sd15)
    del tensors[missing]
    save_file(tensors, tmp_path / "tiny.safetensors")
    with pytest.raises(ModelError, match="model 'mine': cannot be loaded") as caught:
        load(tmp_path / "tiny.safetensors", config=sd15_folder)
    assert "\n" not in str(caught.value)


def test_v_prediction_marker_is_read(sd15, sd15_folder, first_release, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(sd15) | {"v_pred": torch.zeros(1)}, path)
    assert load(path, config=sd15_folder).scheduler.config["prediction_type"] == "v_prediction"
    model = load(path, config=sd15_folder, prediction="epsilon")
    assert model.scheduler.config["prediction_type"] == "epsilon"


@pytest.mark.parametrize("name", ["checkpoint", "ddim", "euler", "euler a", "dpm++ 2m karras", "unipc", "lcm", "ddpm"])
def test_zero_terminal_snr_marker_is_read(sd15, sd15_folder, first_release, tmp_path, finish, name):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(sd15) | {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, path)
    model = load(path, config=sd15_folder)
    scheduler = make_scheduler(name, model.scheduler)
    keys = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
    assert [scheduler.config[key] for key in keys] == ["v_prediction", True, "trailing"]
    plan = prepare_sampler(scheduler, 3, CPU, (64, 64), 1.0, seed=3)
    *_, step = denoise(model, plan.noise(model), [DenoisingPath("global", model.encode_text("a man"))], plan)
    assert bool(step.latent.isfinite().all()) and int(plan.timesteps[0]) == 999
    with pytest.raises(SceneError, match="'heun' does not support zero terminal SNR"):
        make_scheduler("heun", model.scheduler)


@pytest.mark.parametrize(
    ("family", "missing", "message"),
    [
        ("sd15", "cond_stage_model.", "a text encoder is missing in the file; use a whole checkpoint"),
        ("sdxl", "conditioner.embedders.0.", "a text encoder is missing in the file; use a whole checkpoint"),
        ("sdxl", "conditioner.embedders.1.", "a text encoder is missing in the file; use a whole checkpoint"),
        ("sd15", "first_stage_model.", "the file has no VAE; set checkpoint.vae to one of its family"),
    ],
)
def test_missing_part_is_named(sd15, tiny, first_release, tmp_path, family, missing, message):
    tensors, path = first_release(tiny if family == "sdxl" else sd15), tmp_path / "tiny.safetensors"
    save_file({key: value for key, value in tensors.items() if not key.startswith(missing)}, path)
    with pytest.raises(ModelError, match=f"^model 'mine': {message}$"):
        load(path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("unet/config.json", None, "unet/config.json is missing"),
        ("scheduler/scheduler_config.json", "{", "scheduler/scheduler_config.json cannot be read"),
    ],
)
def test_incomplete_config_folder_is_named(sd15, sd15_folder, copied, first_release, tmp_path, file, content, message):
    save_file(first_release(sd15), tmp_path / "tiny.safetensors")
    config = copied(sd15_folder)
    if content is None:
        (config / file).unlink()
    else:
        (config / file).write_text(content)
    with pytest.raises(
        ModelError, match=rf"^checkpoint.config '.*': {message}; give the .json files of a whole"
    ) as caught:
        load(tmp_path / "tiny.safetensors", config=config)
    assert "\n" not in str(caught.value)


def test_file_without_unet_is_rejected(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"no Stable Diffusion UNet in this file \(its first key is 'lora_unet_x"):
        load(path)


def test_pickle_is_rejected_by_suffix(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match=r"a single file must be \.safetensors, \.ckpt can hold code"):
        load(path)


def test_bundled_tokenizers_equal_clip():
    first, second = (load_tokenizer(CONFIGS / "sdxl" / name) for name in ("tokenizer", "tokenizer_2"))
    assert first("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (first.pad_token_id, second.pad_token_id, len(first)) == (49407, 0, 49408)


@pytest.mark.parametrize(("family", "width"), [("sd15", 768), ("sd2", 1024), ("sdxl", 2048)])
def test_bundled_configs_build_released_models(family, width):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / family / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGS / family / "vae"))
    count = sum(p.numel() for p in unet.parameters())
    assert count == {"sd15": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}[family]
    assert unet.config["cross_attention_dim"] == width
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863


def test_config_is_rejected_for_folder(golden):
    with pytest.raises(ModelError, match="is a folder with its own configuration"):
        load(golden / "tiny-sdxl", config=golden / "tiny-sdxl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable .safetensors file (it is empty); fetch it again"),
        (b"<!DOCTYPE html><html>log in</html>", "is a web page instead of the file"),
        (b"\x80\x02}q\x00" + b"x" * 64, "is a pickle, which can run code when opened"),
        (b"PK\x03\x04" + b"x" * 64, "is a zip archive"),
        ((200_000_000).to_bytes(8, "little") + b"{" + b" " * 64, "header of 200000000 bytes"),
        ((99).to_bytes(8, "little") + b'{"x": 1', "truncated"),
    ],
)
def test_file_that_is_not_safetensors_is_rejected_in_one_line(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "notes"), [({}, 1), ({"prediction": "v_prediction"}, 0)])
def test_sd2_file_without_prediction_is_epsilon_with_note(
    sd15, sd15_folder, first_release, tmp_path, monkeypatch, options, notes
):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(sd15), path)
    monkeypatch.setattr("costars.model.single_file.detect_family", lambda parts, width: SD2)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sd2").symlink_to(sd15_folder)
    monkeypatch.setattr("costars.model.checkpoint_parts.CONFIGS", tmp_path / "configs")
    model = load(path, **options)
    assert model.info.family == "sd2"
    assert model.scheduler.config["prediction_type"] == options.get("prediction", "epsilon")
    assert len(model.info.notes) == notes
    assert all("checkpoint.prediction: v_prediction" in note for note in model.info.notes)
