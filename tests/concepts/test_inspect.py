"""Concept files are described as JSON, with the reason if they are not supported."""

import hashlib
import json

import torch

from costars.concepts.inspect import describe

UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


def test_description_of_a_kohya_file(write, tmp_path):
    tensors = {f"{UNET}.lora_down.weight": torch.ones(2, 2048), f"{UNET}.lora_up.weight": torch.ones(5, 2)}
    tensors |= {f"{TEXT}.lora_down.weight": torch.ones(1, 8), f"{TEXT}.lora_up.weight": torch.ones(8, 1)}
    (tmp_path / "mine.civitai.info").write_text(json.dumps({"trainedWords": ["zxa"], "baseModel": "SDXL 1.0"}))
    path = write(
        tensors,
        **{
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_tag_frequency": json.dumps({"a": {"zxa": 9, "park": 3}}),
            "modelspec.title": "Ana",
            "modelspec.license": "CC0-1.0",
        },
    )
    report = describe(path)
    assert json.loads(json.dumps(report)) == report == {
        "file": "mine.safetensors",
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "format": "kohya",
        "tensors": 4,
        "keys": [f"{TEXT}.lora_down.weight", f"{TEXT}.lora_up.weight", f"{UNET}.lora_down.weight"],
        "whole_layers": 0,
        "notes": [],
        "family": "sdxl",
        "class_name": "",
        "trigger": "",
        "stated_triggers": ["zxa"],
        "frequent_tags": ["zxa", "park"],
        "licence": "CC0-1.0",
        "layers": {"text_encoder": 1, "unet": 1},
        "ranks": [1, 2],
        "words": {},
        "per_layer": False,
        "card": {},
        "modelspec": {"title": "Ana", "license": "CC0-1.0"},
        "sidecar": {"file": "mine.civitai.info", "triggers": ["zxa"], "base_model": "SDXL 1.0"},
    }  # fmt: skip


def test_description_of_a_textual_inversion(write, random):
    report = describe(write({"clip_l": random(2, 768), "clip_g": random(2, 1280)}))
    assert (report["format"], report["trigger"], report["layers"], report["ranks"]) == (
        "textual inversion",
        "mine",
        {},
        [],
    )
    assert report["words"] == {"mine": {"text_encoder": [2, 768], "text_encoder_2": [2, 1280]}}


def test_description_of_an_unsupported_file_has_the_reason(write):
    metadata = {"modelspec.title": "Ana", "modelspec.license": "CC0-1.0"}
    path = write({f"{UNET}.oft_diag": torch.ones(2, 2), f"{UNET}.alpha": torch.ones(())}, **metadata)
    report = describe(path)
    assert json.loads(json.dumps(report)) == report
    assert report["cannot_be_applied"].startswith("mine.safetensors: is an OFT of an old")
    assert (report["tensors"], report["licence"], report["modelspec"]["title"]) == (2, "CC0-1.0", "Ana")
    assert report["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and "family" not in report


def test_description_of_an_edlora_pickle(tmp_path):
    torch.save({"params": {"new_concept_embedding": {"<zxa>": torch.ones(16, 768)}, "unet": {}}}, tmp_path / "zxa.pth")
    report = describe(tmp_path / "zxa.pth")
    assert (report["format"], report["family"], report["trigger"]) == ("ED-LoRA", "sd15", "<zxa>")
    assert (report["tensors"], report["keys"], report["per_layer"]) == (1, ["tokens.text_encoder.<zxa>"], True)
    assert json.loads(json.dumps(report)) == report
