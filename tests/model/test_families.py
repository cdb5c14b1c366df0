"""Checkpoints that people own: every family and every way to keep one gives the same numbers."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from costars.errors import ModelError, SceneError
from costars.model.components import unused_weights
from costars.model.hub import Source, locate
from costars.model.load import load_model
from costars.model.prompt_weighting import parse_prompt
from costars.model.schedulers import make_scheduler
from costars.model.single_file import CONFIGS, tokenizer_of
from costars.sample.loop import denoise, sampler
from costars.types import DenoisingPath

CPU = torch.device("cpu")


def load(path, **options):
    return load_model(Source("mine", path, **options), CPU, torch.float32, 0, "attention")


def same(ours, theirs):
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def sd15(sd15_folder):
    return load(sd15_folder)


def test_an_sd15_folder_is_known_by_what_it_holds(sd15):
    assert (sd15.info.family, sd15.info.size_px, sd15.info.cell_px) == ("sd15", (256, 256), 8)
    assert [e.name for e in sd15.encoders] == ["text_encoder"]
    assert sd15.encode_text("a man").pooled is None


def test_a_path_on_sd15_equals_the_pipeline_of_diffusers(sd15, sd15_folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(sd15_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a man in the forest",
        negative_prompt="blurry",
        latents=sd15.initial_noise((64, 72), 3),
        width=64,
        height=72,
        num_inference_steps=5,
        output_type="latent",
    ).images
    plan = sampler(sd15.scheduler, 5, CPU, (64, 72), 7.5, seed=3)
    texts = [sd15.encode_text(p) for p in ("a man in the forest", "blurry")]
    *_, step = denoise(sd15, plan.noise(sd15), [DenoisingPath("global", *texts)], plan)
    assert torch.allclose(step.latent, expected, atol=1e-4, rtol=0)


def test_an_earlier_layer_of_sd15_is_read_through_the_final_norm(sd15):
    (encoder,) = sd15.encoders
    ids = encoder.tokenizer("a man", padding="max_length", return_tensors="pt").input_ids
    hidden = encoder.module(ids, output_hidden_states=True)
    expected = encoder.module.final_layer_norm(hidden.hidden_states[-2])
    assert torch.equal(sd15.encode_text("a man", (), 2).tokens, expected)
    assert torch.equal(sd15.encode_text("a man").tokens, hidden.last_hidden_state)


def test_a_single_file_of_sdxl_is_the_folder(tiny, golden, first_release, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(tiny), path)
    model = load(path, config=golden / "tiny-sdxl")
    assert model.info.family == "sdxl"
    assert same(model.unet, tiny.unet) and same(model.vae, tiny.vae)
    assert all(same(a.module, b.module) for a, b in zip(model.encoders, tiny.encoders, strict=True))
    text, expected = model.encode_text("photo of a man"), tiny.encode_text("photo of a man")
    assert torch.equal(text.tokens, expected.tokens) and torch.equal(text.pooled, expected.pooled)
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_a_single_file_of_sd15_is_the_folder(sd15, sd15_folder, first_release, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(sd15), path)
    model = load(path, config=sd15_folder)
    assert model.info.family == "sd15"
    assert same(model.unet, sd15.unet) and same(model.vae, sd15.vae)
    assert torch.equal(model.encode_text("a man").tokens, sd15.encode_text("a man").tokens)


@pytest.mark.parametrize("gone", ["model.diffusion_model.out.2.bias", "first_stage_model.decoder.conv_out.bias"])
def test_weights_that_a_single_file_lacks_are_never_drawn_at_random(sd15, sd15_folder, first_release, tmp_path, gone):
    tensors = first_release(sd15)
    del tensors[gone]
    save_file(tensors, tmp_path / "tiny.safetensors")
    with pytest.raises(ModelError, match="model 'mine': cannot be loaded") as caught:
        load(tmp_path / "tiny.safetensors", config=sd15_folder)
    assert "\n" not in str(caught.value)


def test_a_file_that_says_it_predicts_velocity_does_so(sd15, sd15_folder, first_release, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(sd15) | {"v_pred": torch.zeros(1)}, path)
    assert load(path, config=sd15_folder).scheduler.config["prediction_type"] == "v_prediction"
    told = load(path, config=sd15_folder, prediction="epsilon")
    assert told.scheduler.config["prediction_type"] == "epsilon"


@pytest.mark.parametrize("name", ["checkpoint", "ddim", "euler", "euler a", "dpm++ 2m karras", "unipc", "lcm", "ddpm"])
def test_a_file_that_says_its_noise_leaves_nothing_of_the_picture_is_drawn_so(
    sd15, sd15_folder, first_release, tmp_path, finish, name
):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(sd15) | {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, path)
    model = load(path, config=sd15_folder)
    scheduler = make_scheduler(name, model.scheduler)
    told = ("prediction_type", "rescale_betas_zero_snr", "timestep_spacing")
    assert [scheduler.config[key] for key in told] == ["v_prediction", True, "trailing"]
    plan = sampler(scheduler, 3, CPU, (64, 64), 1.0, seed=3)
    *_, step = denoise(model, plan.noise(model), [DenoisingPath("global", model.encode_text("a man"))], plan)
    assert bool(step.latent.isfinite().all()) and int(plan.timesteps[0]) == 999
    with pytest.raises(SceneError, match="'heun' cannot begin at pure noise, as this checkpoint does"):
        make_scheduler("heun", model.scheduler)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_libraries_tell_nothing_that_is_no_error(sd15_folder, copied, capfd, dtype):
    folder = copied(sd15_folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"of_another_release": 1}))
    model = load_model(Source("mine", folder), CPU, dtype)
    model.vae.to(torch.float32)
    make_scheduler("dpm++ 2s", model.scheduler).set_timesteps(7)
    parse_prompt(model.encoders[0].tokenizer, "so " * 100)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("family", "gone", "said"),
    [
        ("sd15", "cond_stage_model.", "its text encoders are not all in the file; use a whole checkpoint"),
        ("sdxl", "conditioner.embedders.0.", "its text encoders are not all in the file; use a whole checkpoint"),
        ("sdxl", "conditioner.embedders.1.", "its text encoders are not all in the file; use a whole checkpoint"),
        ("sd15", "first_stage_model.", "there is no decoder in the file; set checkpoint.vae to one of its family"),
    ],
)
def test_a_single_file_without_one_of_its_parts_says_so(sd15, tiny, first_release, tmp_path, family, gone, said):
    tensors, path = first_release(tiny if family == "sdxl" else sd15), tmp_path / "tiny.safetensors"
    save_file({key: value for key, value in tensors.items() if not key.startswith(gone)}, path)
    with pytest.raises(ModelError, match=f"^model 'mine': {said}$"):
        load(path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (b"<html>", r"cannot be loaded \(vae.safetensors: is a web page"),
        (
            None,
            r"cannot be loaded \(vae has only a pickle \(diffusion_pytorch_model.bin\), which may run code and is no",
        ),
    ],
)
def test_a_decoder_that_cannot_be_read_is_named_by_its_field(sd15_folder, tmp_path, wrong, said):
    path = tmp_path / ("vae.safetensors" if wrong else "vae")
    if wrong:
        path.write_bytes(wrong)
    else:
        path.mkdir()
        (path / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=rf"^checkpoint.vae '.*vae.*': {said}.*; want the folder of a diffusers deco"):
        load(sd15_folder, vae=path)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("unet/config.json", None, "its unet/config.json is not there"),
        ("scheduler/scheduler_config.json", "{", "its scheduler/scheduler_config.json cannot be read"),
    ],
)
def test_a_configuration_that_is_not_whole_is_named_by_its_field(
    sd15, sd15_folder, copied, first_release, tmp_path, file, content, said
):
    save_file(first_release(sd15), tmp_path / "tiny.safetensors")
    config = copied(sd15_folder)
    if content is None:
        (config / file).unlink()
    else:
        (config / file).write_text(content)
    with pytest.raises(
        ModelError, match=rf"^checkpoint.config '.*': {said}; give the .json files of a whole"
    ) as caught:
        load(tmp_path / "tiny.safetensors", config=config)
    assert "\n" not in str(caught.value)


def test_a_file_without_a_unet_says_what_it_holds(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"no Stable Diffusion UNet in this file \(it holds 'lora_unet_x"):
        load(path)


def test_a_pickle_is_refused_by_its_name(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match=r"a single file must be \.safetensors, \.ckpt may hold code"):
        load(path)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_half_precision_files_of_a_folder_are_taken_where_there_are_no_others(sd15, sd15_folder, copied, variant):
    folder = copied(sd15_folder)
    for path in list(folder.glob("*/*.safetensors")):
        save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
        path.rename(path.with_name(f"{path.stem}.{variant}.safetensors"))
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"of no use here")
    model = load(folder)
    assert model.unet.dtype is torch.float32
    assert torch.allclose(model.unet.conv_in.weight, sd15.unet.conv_in.weight, atol=1e-3)


def test_a_decoder_in_one_file_takes_the_place_of_the_models_own(sd15, sd15_folder, first_release, tmp_path):
    tensors = first_release(sd15)
    save_file(tensors, tmp_path / "model.safetensors")
    own = {
        k.removeprefix("first_stage_model."): v + 0.5 for k, v in tensors.items() if k.startswith("first_stage_model.")
    }
    save_file(own, tmp_path / "vae.safetensors")
    model = load(tmp_path / "model.safetensors", config=sd15_folder, vae=tmp_path / "vae.safetensors")
    assert torch.equal(model.vae.decoder.conv_out.bias, sd15.vae.decoder.conv_out.bias + 0.5)
    own = hashlib.sha256((tmp_path / "vae.safetensors").read_bytes()).hexdigest()
    assert model.info.parts_sha256 == {"checkpoint.vae": own}  # the rest is in the one file
    assert not model.vae.training and not any(p.requires_grad for p in model.vae.parameters())


def test_another_decoder_takes_the_place_of_the_models_own(tiny, golden, sd15, sd15_folder):
    model = load(golden / "tiny-sdxl", vae=sd15_folder)
    assert same(model.vae, sd15.vae) and same(model.unet, tiny.unet)
    (weights,) = (sd15_folder / "vae").glob("*.safetensors")
    told = model.info.parts_sha256
    assert set(told) == {"model.text_encoder", "model.text_encoder_2", "checkpoint.vae"}
    assert told["checkpoint.vae"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_a_large_picture_may_be_decoded_in_tiles(sd15, sd15_folder):
    tiled = load(sd15_folder, tiles=True)
    latent = torch.randn(1, 4, 48, 40, generator=torch.Generator().manual_seed(0))
    whole, parts = sd15.decode(latent), tiled.decode(latent)
    assert tiled.vae.use_tiling and not sd15.vae.use_tiling
    assert parts.size == whole.size == (320, 384) and parts.tobytes() != whole.tobytes()


def test_the_bundled_tokenizers_are_clips_own():
    first, second = (tokenizer_of(CONFIGS / "sdxl" / name) for name in ("tokenizer", "tokenizer_2"))
    assert first("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (first.pad_token_id, second.pad_token_id, len(first)) == (49407, 0, 49408)


@pytest.mark.parametrize(("family", "width"), [("sd15", 768), ("sd2", 1024), ("sdxl", 2048)])
def test_the_bundled_configurations_build_the_real_models(family, width):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / family / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGS / family / "vae"))
    count = sum(p.numel() for p in unet.parameters())
    assert count == {"sd15": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}[family]
    assert unet.config["cross_attention_dim"] == width
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863


def test_a_name_that_is_nowhere_says_what_is_allowed(tmp_path):
    with pytest.raises(ModelError, match="model 'nope': no such folder or file; want a diffusers folder"):
        locate("nope", tmp_path, offline=True)


def test_an_id_that_was_never_fetched_is_not_to_be_had_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match="model 'nobody/nothing@v1': no such folder, not in the Hugging Face cache"
    ) as e:
        locate("nobody/nothing@v1", tmp_path, offline=True)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("asked", "found"), [("some/model", "main"), ("some/model@v1", "v1")])
def test_an_id_in_the_cache_is_found_offline_at_its_revision(tmp_path, monkeypatch, asked, found):
    repository, commits = tmp_path / "models--some--model", {"main": "0" * 40, "v1": "1" * 40}
    (repository / "refs").mkdir(parents=True)
    for revision, commit in commits.items():
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("costars.model.hub.HF_HUB_OFFLINE", True)  # as the variable of this name sets it
    assert locate(asked, tmp_path, offline=False) == repository / "snapshots" / commits[found]


def test_weights_that_would_not_be_read_are_not_fetched():
    whole, half = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"
    pieces = [f"text_encoder/model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    alone = ["vae/diffusion_pytorch_model.bf16.safetensors", "vae/config.json"]
    files = [whole, half, "text_encoder/model.safetensors", *pieces, *alone, "sd_xl_base_1.0.safetensors"]
    assert unused_weights(files) == [half, *pieces]


def test_a_configuration_is_for_a_single_file(golden):
    with pytest.raises(ModelError, match="is a folder with its own configuration"):
        load(golden / "tiny-sdxl", config=golden / "tiny-sdxl")


def test_the_facts_of_a_source_are_its_key(tmp_path):
    source = Source("mine", tmp_path)
    assert hash(source) == hash(replace(source)) and source != replace(source, prediction="epsilon")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a readable .safetensors file (it is empty); fetch it again"),
        (b"<!DOCTYPE html><html>log in</html>", "is a web page instead of the file"),
        (b"\x80\x02}q\x00" + b"x" * 64, "is a pickle, which can run code when opened"),
        (b"PK\x03\x04" + b"x" * 64, "is a zip archive"),
        ((200_000_000).to_bytes(8, "little") + b"{" + b" " * 64, "header of 200000000 bytes"),
        ((99).to_bytes(8, "little") + b'{"x": 1', "truncated"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_one_line_of_error(tmp_path, content, said):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_unet_that_is_told_the_guidance_is_refused(sd15_folder, copied):
    folder = copied(sd15_folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"time_cond_proj_dim": 8}))
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
    unet.save_pretrained(folder / "unet")
    with pytest.raises(ModelError, match=r"its UNet is told the guidance .* with an LCM LoRA as style"):
        load(folder)


@pytest.mark.parametrize(("asked", "noted"), [({}, 1), ({"prediction": "v_prediction"}, 0)])
def test_a_file_of_sd2_that_does_not_say_what_it_predicts_is_taken_as_epsilon_and_noted(
    sd15, sd15_folder, first_release, tmp_path, monkeypatch, asked, noted
):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(sd15), path)
    width = int(sd15.unet.config["cross_attention_dim"])
    monkeypatch.setattr("costars.model.single_file._FAMILIES", {width: "sd2"})
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sd2").symlink_to(sd15_folder)
    monkeypatch.setattr("costars.model.load.CONFIGS", tmp_path / "configs")
    model = load(path, **asked)
    assert model.info.family == "sd2"
    assert model.scheduler.config["prediction_type"] == asked.get("prediction", "epsilon")
    assert len(model.info.notes) == noted
    assert all("checkpoint.prediction: v_prediction" in note for note in model.info.notes)
