"""Single files: the same model as the folder, and what is wrong with broken files."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from costars.errors import ModelError, SceneError
from costars.files.safetensors_header import Entry
from costars.model.checkpoint_file import CheckpointFile
from costars.model.checkpoint_keys import part_prefixes
from costars.model.checkpoint_parts import part_classes
from costars.model.clip_tokenizer import load_tokenizer
from costars.model.families import FAMILIES, SD2, SD15
from costars.model.hub import Source
from costars.model.load import load_model
from costars.model.schedulers import make_scheduler
from costars.model.single_file import CONFIGS, build_empty, check_all_read, map_part, read_family
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


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model.diffusion_model.out.2.bias", "its unet lacks 1 weights, the first is conv_out.bias; use a whole"),
        ("first_stage_model.decoder.conv_out.bias", "its vae lacks 1 weights, the first is decoder.conv_out.bias"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "its text_encoder lacks 1 weights, the fi"),
    ],
)
def test_missing_weights_are_rejected(sd15, sd15_folder, first_release, tmp_path, missing, message):
    tensors = first_release(sd15)
    del tensors[missing]
    save_file(tensors, tmp_path / "tiny.safetensors")
    with pytest.raises(ModelError, match=f"^model 'mine': {message}") as caught:
        load(tmp_path / "tiny.safetensors", config=sd15_folder)
    assert "\n" not in str(caught.value)


def test_v_prediction_marker_is_read(sd15, sd15_folder, first_release, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(sd15) | {"v_pred": torch.zeros(1)}, path)
    assert load(path, config=sd15_folder).scheduler.config["prediction_type"] == "v_prediction"
    model = load(path, config=sd15_folder, prediction="epsilon")
    assert model.scheduler.config["prediction_type"] == "epsilon"
    assert "although its file states tensor v_pred (v_prediction)" in model.info.notes[0]


@pytest.mark.parametrize("field", ["modelspec.prediction_type", "modelspec.predict_key"])
def test_prediction_in_metadata_is_read(tiny, golden, first_release, tmp_path, field):
    path = tmp_path / "tiny.safetensors"
    save_file(first_release(tiny), path, metadata={field: "v"})
    model = load(path, config=golden / "tiny-sdxl")
    assert model.scheduler.config["prediction_type"] == "v_prediction"
    (note,) = model.info.notes
    assert "states the prediction epsilon, but v_prediction is used as the file states" in note


def test_edm_file_equals_diffusers_pipeline(tiny, golden, first_release, tmp_path, linked, copy_part):
    """Playground v2.5: EDM's parametrization, and latents with a mean and a deviation."""
    from diffusers import EDMDPMSolverMultistepScheduler, StableDiffusionXLPipeline

    mean, std = [-1.6, 1.8, -1.3, 2.5], [8.4, 5.9, 6.5, 5.2]
    path = tmp_path / "tiny.safetensors"
    marks = {"edm_mean": torch.tensor(mean).view(1, 4, 1, 1), "edm_std": torch.tensor(std).view(1, 4, 1, 1)}
    save_file(first_release(tiny) | marks, path)
    model = load(path, config=golden / "tiny-sdxl")
    config = copy_part(linked, "vae") / "config.json"
    latents = {"latents_mean": mean, "latents_std": std, "scaling_factor": 0.5}
    config.write_text(json.dumps({**json.loads(config.read_text()), **latents}))
    pipeline = StableDiffusionXLPipeline.from_pretrained(linked, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = EDMDPMSolverMultistepScheduler()
    options = {"width": 64, "height": 64, "num_inference_steps": 3, "guidance_scale": 1.0}
    expected = pipeline("a man", latents=model.initial_noise((64, 64), 3), **options).images[0]
    plan = prepare_sampler(make_scheduler("checkpoint", model.scheduler), 3, CPU, (64, 64), 1.0, seed=3)
    *_, step = denoise(model, plan.noise(model), [DenoisingPath("global", model.encode_text("a man"))], plan)
    ours = np.asarray(model.decode(step.latent), dtype=int)
    assert np.abs(ours - np.asarray(expected, dtype=int)).max() <= 1
    replaced = load(path, config=golden / "tiny-sdxl", vae=golden / "tiny-sdxl").vae.config
    assert replaced["scaling_factor"] == 0.5 and np.allclose(replaced["latents_mean"], mean)


def test_vae_without_encoder_is_loaded(sd15, sd15_folder, first_release, tmp_path):
    parts = ("first_stage_model.encoder.", "first_stage_model.quant_conv.")
    save_file({k: v for k, v in first_release(sd15).items() if not k.startswith(parts)}, tmp_path / "m.safetensors")
    model = load(tmp_path / "m.safetensors", config=sd15_folder)
    latent = torch.randn(1, 4, 8, 8)
    assert model.vae.encoder is None and model.decode(latent).tobytes() == sd15.decode(latent).tobytes()


def test_unet_with_fewer_layers_needs_its_configuration(sd15, sd15_folder, copied, first_release, tmp_path):
    """As SSD-1B beside SDXL: the shape of the rest is the same."""
    gone = ".transformer_blocks.1."
    config = copied(sd15_folder)
    unet = json.loads((config / "unet" / "config.json").read_text()) | {"transformer_layers_per_block": 2}
    (config / "unet" / "config.json").write_text(json.dumps(unet))
    save_file(first_release(sd15), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"its unet lacks \d+ weights, .*{gone}.*SSD-1B.*give its diffusers folder"):
        load(tmp_path / "model.safetensors", config=config)
    assert same(load(tmp_path / "model.safetensors", config=sd15_folder).unet, sd15.unet)


def test_longer_text_encoder_is_named(sd15, sd15_folder, first_release, tmp_path):
    tensors, key = first_release(sd15), "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
    save_file(tensors | {key: torch.zeros(248, 768)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=rf"^model 'mine': '{key}' has the shape \(248, 768\), .*LongCLIP.*config"):
        load(tmp_path / "model.safetensors", config=sd15_folder)


def test_damaged_vae_file_names_the_field(sd15, sd15_folder, first_release, tmp_path):
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, tmp_path / "vae.safetensors")
    save_file(first_release(sd15), tmp_path / "whole.safetensors")
    with pytest.raises(ModelError, match=r"^checkpoint.vae '.*vae.safetensors': its vae lacks \d+ weights"):
        load(sd15_folder, vae=tmp_path / "vae.safetensors")
    start = "first_stage_model."
    vae = {k.removeprefix(start): v for k, v in first_release(sd15).items() if k.startswith(start)}
    save_file(vae | {"decoder.extra.weight": torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(ModelError, match=r"^checkpoint.vae '.*': has layers .* the first is 'decoder.extra.weight'"):
        load(tmp_path / "whole.safetensors", config=sd15_folder, vae=tmp_path / "vae.safetensors")


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
    path = tmp_path / "other.safetensors"
    save_file({"something.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"no Stable Diffusion UNet in this file \(its first key is 'something.w"):
        load(path)


def test_pickle_is_rejected_by_suffix(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match=r"a single file must be \.safetensors, \.ckpt can hold code"):
        load(path)
    with pytest.raises(ModelError, match=r"must be \.safetensors, \.gguf is quantized; convert it, or use another"):
        load(path.rename(path.with_suffix(".gguf")))


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
    assert model.info.family == "sd2" and model.info.size_px == (256, 256)
    assert model.scheduler.config["prediction_type"] == options.get("prediction", "epsilon")
    assert len(model.info.notes) == notes
    assert all("checkpoint.prediction: v_prediction" in note for note in model.info.notes)


def test_sd2_file_with_metadata_needs_no_note(sd15, sd15_folder, first_release, tmp_path, monkeypatch):
    metadata = {"modelspec.architecture": "stable-diffusion-v2-768-v", "modelspec.resolution": "768x768"}
    save_file(first_release(sd15), tmp_path / "tiny.safetensors", metadata=metadata)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "sd2").symlink_to(sd15_folder)
    monkeypatch.setattr("costars.model.checkpoint_parts.CONFIGS", tmp_path / "configs")
    monkeypatch.setattr("costars.model.single_file.detect_family", lambda parts, width: SD2)
    model = load(tmp_path / "tiny.safetensors")
    assert model.scheduler.config["prediction_type"] == "v_prediction"
    assert model.info.size_px == (768, 768) and model.info.notes == ()
    monkeypatch.setattr("costars.model.single_file.detect_family", lambda parts, width: SD15)
    (note,) = load(tmp_path / "tiny.safetensors", config=sd15_folder, prediction="v_prediction").info.notes[-1:]
    assert note == "model 'mine': its file states 768 x 768 px, 256 x 256 is the default; set size for it"


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_every_tensor_of_a_released_checkpoint_is_read(first_release, open_clip, name):
    """From keys and shapes at full size; SD 2 has OpenCLIP's text encoder with a last layer that is not read."""
    family = FAMILIES[name]
    classes, prefixes = part_classes(family), part_prefixes(family)
    modules = {part: build_empty(kind, CONFIGS / name / part).to("meta") for part, kind in classes.items()}
    encoders = [SimpleNamespace(module=modules[e.name]) for e in family.text_encoders]
    tensors = first_release(SimpleNamespace(unet=modules["unet"], vae=modules["vae"], encoders=encoders))
    unread = set()
    if name == "sd2":
        tensors = {k: v for k, v in tensors.items() if not k.startswith("cond_stage_model.")}
        own = open_clip(modules["text_encoder"].state_dict())
        last = {k.replace(".22.", ".23."): v for k, v in own.items() if ".resblocks.22." in k}
        unread = {f"cond_stage_model.model.{k}" for k in (*last, "text_projection")}
        own |= {**last, "text_projection": torch.empty(1024, 1024, device="meta")}
        tensors |= {f"cond_stage_model.model.{k}": v for k, v in own.items()}
    file = CheckpointFile(
        what="model 'mine'",
        path=Path("none"),
        entries={key: Entry("F16", tuple(value.shape)) for key, value in tensors.items()},
        original_keys={key: key for key in tensors},
        scales={},
        metadata={},
    )
    assert read_family(file.entries, file.what) is family
    parts = [map_part(file, part, classes[part], CONFIGS / name, starts) for part, starts in prefixes.items()]
    assert check_all_read(file, parts, ["model.", "cond_stage_model.", "conditioner.", "first_stage_model."]) == ()
    assert frozenset().union(*(part.read for part in parts)) == set(tensors) - unread
