"""Concept files: what is in them is read whole, or refused by name."""

import hashlib
import json

import pytest
import torch

from costars.concepts.load import load_concept, read_card
from costars.errors import ConceptError

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
DOWN, UP = torch.arange(12.0).view(2, 6), torch.arange(10.0).view(5, 2)


def pair(layer: str, suffixes=(".lora_A.weight", ".lora_B.weight")) -> dict[str, torch.Tensor]:
    return {layer + suffixes[0]: DOWN, layer + suffixes[1]: UP}


@pytest.mark.parametrize(
    "suffixes",
    [
        (".lora_A.weight", ".lora_B.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ],
)
def test_every_spelling_of_the_two_factors_is_the_same_adapter(write, suffixes):
    concept = load_concept(write(pair(LAYER, suffixes) | pair(TEXT_LAYER, suffixes)), "mine", "mine")
    assert set(concept.adapter) == {LAYER, TEXT_LAYER}
    assert all(torch.equal(e.down, DOWN) and torch.equal(e.up, UP) for e in concept.adapter.values())


def test_half_precision_is_read_as_float32(write):
    path = write({k: v.half() for k, v in pair(LAYER).items()})
    (entry,) = load_concept(path, "mine", "mine").adapter.values()
    assert entry.down.dtype is entry.up.dtype is torch.float32


def test_whole_numbers_are_refused_in_one_line(write):
    with pytest.raises(ConceptError, match=r"^mine: '.*lora_A.weight' is of int8, want floating point numbers; use"):
        load_concept(write({k: v.to(torch.int8) for k, v in pair(LAYER).items()}), "mine", "mine")


def test_alpha_over_rank_scales_each_part_by_its_own(write):
    alphas = json.dumps({"unet.r": 2, "unet.lora_alpha": 8, "text_encoder.lora_alpha": 1})
    concept = load_concept(write(pair(LAYER) | pair(TEXT_LAYER), lora_adapter_metadata=alphas), "mine", "mine")
    assert torch.equal(concept.adapter[LAYER].up, UP * 4)
    assert torch.equal(concept.adapter[TEXT_LAYER].up, UP / 2)


def test_the_card_says_what_the_concept_is(write):
    card = {"class_name": "woman", "trigger": "zxa", "family": "sdxl", "licence": "CC0-1.0"}
    path = write(pair(LAYER), costars=json.dumps(card))
    concept = load_concept(path, "mine", "library/mine")
    assert (concept.class_name, concept.trigger, concept.family, concept.licence) == tuple(card.values())
    assert (concept.name, concept.source) == ("mine", "library/mine")
    assert concept.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_card(path) == card


def test_a_file_without_a_card_says_nothing(write):
    concept = load_concept(write(pair(LAYER)), "mine", "mine")
    assert (concept.class_name, concept.trigger, read_card(write(pair(LAYER)))) == ("", "", {})


@pytest.mark.parametrize(
    ("tensors", "odd"),
    [
        (pair(LAYER) | {"unet.conv_in.bias": UP}, "unet.conv_in.bias"),
        (pair("prior.blocks.0.to_q"), "prior.blocks.0.to_q.lora_A.weight"),
        (pair("lora_unet_mid_block_attn1_to_q", (".lora_down.weight", ".lora_up.weight")), "lora_unet_mid_block"),
        ({}, "nothing at all"),
    ],
)
def test_a_tensor_that_was_not_understood_is_an_error_never_skipped(write, tensors, odd):
    with pytest.raises(ConceptError, match=r"mine: holds '.*convert it, or use another file") as caught:
        load_concept(write(tensors), "mine", "mine")
    assert odd in str(caught.value)


@pytest.mark.parametrize("key", ["class_name", "trigger", "licence"])
@pytest.mark.parametrize("value", [3, "a\nb", "\x1b[2J", "a" * 501])
def test_a_card_that_cannot_stand_in_a_prompt_is_refused(write, key, value):
    with pytest.raises(ConceptError, match=rf"mine.safetensors: its card's {key} .* is no line of text") as caught:
        load_concept(write(pair(LAYER), costars=json.dumps({key: value})), "mine", "mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        (pair(LAYER), "diffusers"),
        (pair(LAYER, (".lora.down.weight", ".lora.up.weight")), "diffusers"),
        (pair(f"base_model.model.{LAYER}"), "peft"),
        (pair("lora_unet_conv_in", (".lora_down.weight", ".lora_up.weight")), "kohya"),
        (pair("lora_te2_text_projection", (".lora_down.weight", ".lora_up.weight")), "kohya"),
        ({"tokens.text_encoder.zxa": DOWN}, "costars"),
        ({"<zxa>": DOWN}, "textual inversion"),
    ],
)
def test_the_format_is_told_by_the_keys(write, tensors, name):
    assert load_concept(write(tensors), "mine", "mine").format == name


def test_a_missing_or_damaged_file_is_one_line(tmp_path):
    with pytest.raises(ConceptError, match=r"gone.safetensors: no such file"):
        load_concept(tmp_path / "gone.safetensors", "gone", "gone")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\xff" * 100)
    with pytest.raises(ConceptError, match=r"damaged.safetensors: not a readable .safetensors file") as caught:
        load_concept(damaged, "damaged", "damaged")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("card", ["{", "[1]", '"text"'])
@pytest.mark.parametrize("key", ["costars", "lora_adapter_metadata"])
def test_damaged_metadata_is_an_error_of_ours(write, key, card):
    path = write(pair(LAYER), **{key: card})
    with pytest.raises(ConceptError, match="mine"):
        load_concept(path, "mine", "mine")
