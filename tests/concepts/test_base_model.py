"""The base model family comes from metadata and tensor shapes, which must agree."""

import json

import pytest
import torch

from costars.concepts.load import load_concept
from costars.errors import ConceptError

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT_2 = "text_model.encoder.layers.0.self_attn.q_proj"


def lora_tensors(path: str, width: int = 6) -> dict[str, torch.Tensor]:
    return {f"{path}.lora_A.weight": torch.ones(1, width), f"{path}.lora_B.weight": torch.ones(5, 1)}


def detect(path) -> str:
    return load_concept(path, "mine", "mine").family


@pytest.mark.parametrize(("width", "expected"), [(768, "sd15"), (1024, "sd2"), (2048, "sdxl"), (64, "")])
def test_family_from_width_of_cross_attention(write, width, expected):
    assert detect(write(lora_tensors(f"unet.{KEY}", width))) == expected


def test_second_text_encoder_means_sdxl(write):
    assert detect(write(lora_tensors(f"text_encoder_2.{TEXT_2}") | lora_tensors(f"text_encoder.{TEXT_2}"))) == "sdxl"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"ss_base_model_version": "sd_v1"}, "sd15"),
        ({"ss_base_model_version": "sd_v2_v"}, "sd2"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd15"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "sd2"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "sdxl"),
        ({"ss_base_model_version": "something else"}, ""),
        ({"ss_base_model_version": "?", "modelspec.architecture": "stable-diffusion-v1/lora"}, "sd15"),
        ({"costars": json.dumps({"family": "sd2"}), "ss_base_model_version": "sd_v1"}, "sd2"),
    ],
)
def test_family_from_metadata_if_shapes_do_not_tell(write, metadata, expected):
    assert detect(write(lora_tensors(f"unet.{QUERY}"), **metadata)) == expected


def test_unknown_base_model_version_is_ignored(write):
    assert detect(write(lora_tensors(f"unet.{KEY}", 768), ss_base_model_version="my merge")) == "sd15"


@pytest.mark.parametrize(
    ("metadata", "width", "stated", "evidence"),
    [
        ({"ss_base_model_version": "sd_v1"}, 2048, "says sd15 (ss_base_model_version 'sd_v1')", "belong to sdxl"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base"}, 768, "says sdxl (modelspec.arch", "belong to sd15"),
        ({"costars": '{"family": "sd2"}'}, 768, "says sd2 (its card)", "attn2.to_k' has input width 768"),
    ],
)
def test_contradicting_metadata_is_rejected(write, metadata, width, stated, evidence):
    with pytest.raises(ConceptError) as caught:
        detect(write(lora_tensors(f"unet.{KEY}", width), **metadata))
    assert stated in str(caught.value) and evidence in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith("use a file with correct metadata")


def test_layers_of_two_families_are_rejected(write):
    with pytest.raises(ConceptError) as caught:
        detect(write(lora_tensors(f"unet.{KEY}", 768) | lora_tensors(f"text_encoder_2.{TEXT_2}")))
    message = str(caught.value)
    assert "layers belong to " in message and "sdxl (second text encoder)" in message and "sd15 ('unet." in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ss_base_model_version", "flux1"),
        ("ss_base_model_version", "sd3_m"),
        ("modelspec.architecture", "Flux-1-dev/lora"),
        ("modelspec.architecture", "stable-diffusion-3-m/lora"),
        ("modelspec.architecture", "stable-diffusion-xl-v1-refiner"),
        ("modelspec.architecture", "Z-Image"),
        ("ss_base_model_version", "lumina2"),
    ],
)
@pytest.mark.parametrize("layer", [f"unet.{QUERY}", "lora_unet_layers_0_attention_qkv", "transformer.blocks.0.to_q"])
def test_other_base_models_are_rejected_by_name(write, layer, key, value):
    with pytest.raises(ConceptError) as caught:
        detect(write(lora_tensors(layer), **{key: value}))
    assert f"mine: made for {value!r} ({key}); use a file for SD 1.5" in str(caught.value)


@pytest.mark.parametrize("value", ["sd16", 3, None])
def test_unknown_family_in_the_card_is_rejected(write, value):
    with pytest.raises(ConceptError, match=r"unknown family '.*' in its card; known: sd15, sd2, sdxl"):
        detect(write(lora_tensors(f"unet.{QUERY}"), costars=json.dumps({"family": value})))


@pytest.mark.parametrize(("width", "expected"), [(768, "sd15"), (1024, "sd2")])
def test_family_from_width_of_embeddings(write, width, expected):
    assert detect(write({"emb_params": torch.ones(2, width)})) == expected


@pytest.mark.parametrize("value", ["Illustrious", "pony", "unknown", "of next year/lora"])
def test_unknown_architecture_is_noted_and_the_layers_decide(write, value):
    path = write(lora_tensors(f"unet.{KEY}", 2048), **{"modelspec.architecture": value})
    concept = load_concept(path, "mine", "mine")
    (note,) = concept.notes
    assert concept.family == "sdxl"
    assert note == f"'mine' says modelspec.architecture {value!r}, which is not known; its layers are of sdxl"
    assert load_concept(write(lora_tensors(f"unet.{KEY}", 2048)), "mine", "mine").notes == ()


def test_unknown_architecture_without_layers_that_tell(write):
    concept = load_concept(write(lora_tensors(f"unet.{QUERY}"), **{"modelspec.architecture": "pony"}), "mine", "mine")
    assert concept.family == "" and concept.notes[0].endswith("its layers do not tell a family")


def test_sd_xl_is_a_name_of_sdxl(write):
    assert detect(write(lora_tensors(f"unet.{QUERY}"), **{"modelspec.architecture": "sd_xl_base_1.0"})) == "sdxl"


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"lokr_w1": (4, 32), "lokr_w2": (160, 64)}, "sdxl"),
        ({"lokr_w1": (4, 32), "lokr_w2_a": (160, 1), "lokr_w2_b": (1, 24)}, "sd15"),
        ({"hada_w1_a": (5, 40), "hada_w1_b": (40, 1024), "hada_w2_a": (5, 40), "hada_w2_b": (40, 1024)}, "sd2"),
        ({"diff": (5, 768)}, "sd15"),
        ({"oft_blocks": (5, 2, 2)}, ""),
    ],
)
def test_family_from_whole_changes(write, random, tensors, expected):
    stem = "lora_unet_" + KEY.replace(".", "_")
    assert detect(write({f"{stem}.{name}": random(*shape) for name, shape in tensors.items()})) == expected
