"""The base model a concept was made for: said, shown, or both, and never against each other."""

import json

import pytest
import torch

from costars.concepts.load import load_concept
from costars.errors import ConceptError

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT_2 = "text_model.encoder.layers.0.self_attn.q_proj"


def pair(path: str, inside: int = 6) -> dict[str, torch.Tensor]:
    return {f"{path}.lora_A.weight": torch.ones(1, inside), f"{path}.lora_B.weight": torch.ones(5, 1)}


def family(path) -> str:
    return load_concept(path, "mine", "mine").family


@pytest.mark.parametrize(("size", "expected"), [(768, "sd15"), (1024, "sd2"), (2048, "sdxl"), (64, "")])
def test_the_size_of_what_cross_attention_reads_shows_it(write, size, expected):
    assert family(write(pair(f"unet.{KEY}", size))) == expected


def test_a_second_text_encoder_shows_sdxl(write):
    assert family(write(pair(f"text_encoder_2.{TEXT_2}") | pair(f"text_encoder.{TEXT_2}"))) == "sdxl"


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
def test_metadata_says_it_where_no_size_shows_it(write, metadata, expected):
    assert family(write(pair(f"unet.{QUERY}"), **metadata)) == expected


def test_what_is_said_in_words_not_known_here_leaves_it_to_the_sizes(write):
    assert family(write(pair(f"unet.{KEY}", 768), ss_base_model_version="my merge")) == "sd15"


@pytest.mark.parametrize(
    ("metadata", "size", "said", "shown"),
    [
        ({"ss_base_model_version": "sd_v1"}, 2048, "says sd15 (ss_base_model_version 'sd_v1')", "are of sdxl"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base"}, 768, "says sdxl (modelspec.arch", "are of sd15"),
        ({"costars": '{"family": "sd2"}'}, 768, "says sd2 (its card)", "attn2.to_k' reads 768 numbers per word"),
    ],
)
def test_what_is_said_against_what_is_shown_is_refused_with_both(write, metadata, size, said, shown):
    with pytest.raises(ConceptError) as caught:
        family(write(pair(f"unet.{KEY}", size), **metadata))
    assert said in str(caught.value) and shown in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith("use a file whose metadata is right")


def test_layers_of_two_families_are_refused_with_both(write):
    with pytest.raises(ConceptError) as caught:
        family(write(pair(f"unet.{KEY}", 768) | pair(f"text_encoder_2.{TEXT_2}")))
    said = str(caught.value)
    assert "its layers are of " in said and "sdxl (it has a second text encoder)" in said and "sd15 ('unet." in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ss_base_model_version", "flux1"),
        ("ss_base_model_version", "sd3_m"),
        ("modelspec.architecture", "Flux-1-dev/lora"),
        ("modelspec.architecture", "stable-diffusion-3-m/lora"),
        ("modelspec.architecture", "stable-diffusion-xl-v1-refiner"),
        ("modelspec.architecture", "Z-Image"),
        ("modelspec.architecture", "of next year/lora"),
        ("ss_base_model_version", "lumina2"),
    ],
)
@pytest.mark.parametrize("layer", [f"unet.{QUERY}", "lora_unet_layers_0_attention_qkv", "transformer.blocks.0.to_q"])
def test_another_base_model_is_refused_by_its_name_whatever_its_layers_are(write, layer, key, value):
    with pytest.raises(ConceptError) as caught:
        family(write(pair(layer), **{key: value}))
    assert f"mine: was made for {value!r} ({key}); use one made for SD 1.5" in str(caught.value)


@pytest.mark.parametrize("value", ["sd16", 3, None])
def test_a_card_that_says_another_family_is_refused(write, value):
    with pytest.raises(ConceptError, match=r"its card says family '.*'; known: sd15, sd2, sdxl"):
        family(write(pair(f"unet.{QUERY}"), costars=json.dumps({"family": value})))
