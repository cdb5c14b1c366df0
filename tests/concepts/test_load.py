"""Every tensor of a concept file is read, or the file is rejected."""

import hashlib
import json

import pytest
import torch

from costars.concepts.load import load_concept, read_card
from costars.errors import ConceptError

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
KOHYA = (".lora_down.weight", ".lora_up.weight")
DOWN, UP = torch.arange(12.0).view(2, 6), torch.arange(10.0).view(5, 2)


def lora_tensors(layer: str, suffixes=(".lora_A.weight", ".lora_B.weight")) -> dict[str, torch.Tensor]:
    return {layer + suffixes[0]: DOWN, layer + suffixes[1]: UP}


@pytest.mark.parametrize(
    "suffixes",
    [
        (".lora_A.weight", ".lora_B.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ],
)
def test_factors_under_any_key_give_the_same_adapter(write, suffixes):
    concept = load_concept(write(lora_tensors(LAYER, suffixes) | lora_tensors(TEXT_LAYER, suffixes)), "mine", "mine")
    assert set(concept.adapter) == {LAYER, TEXT_LAYER}
    assert all(torch.equal(e.down, DOWN) and torch.equal(e.up, UP) for e in concept.adapter.values())


def test_half_precision_is_read_as_float32(write):
    path = write({k: v.half() for k, v in lora_tensors(LAYER).items()})
    (entry,) = load_concept(path, "mine", "mine").adapter.values()
    assert entry.down.dtype is entry.up.dtype is torch.float32


def test_integer_tensors_are_rejected(write):
    with pytest.raises(ConceptError, match=r"^mine: '.*lora_A.weight' has dtype int8, expected floating point; use"):
        load_concept(write({k: v.to(torch.int8) for k, v in lora_tensors(LAYER).items()}), "mine", "mine")


def test_card_describes_the_concept(write):
    card = {"class_name": "woman", "trigger": "zxa", "family": "sdxl", "licence": "CC0-1.0"}
    path = write(lora_tensors(LAYER), costars=json.dumps(card))
    concept = load_concept(path, "mine", "library/mine")
    assert (concept.class_name, concept.trigger, concept.family, concept.licence) == tuple(card.values())
    assert (concept.name, concept.source) == ("mine", "library/mine")
    assert concept.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_card(path) == card


def test_file_without_a_card(write):
    concept = load_concept(write(lora_tensors(LAYER)), "mine", "mine")
    assert (concept.class_name, concept.trigger, read_card(write(lora_tensors(LAYER)))) == ("", "", {})


@pytest.mark.parametrize(
    ("tensors", "unknown"),
    [
        (lora_tensors(LAYER) | {"unet.conv_in.bias": UP}, "unet.conv_in.bias"),
        (lora_tensors("prior.blocks.0.to_q"), "prior.blocks.0.to_q.lora_A.weight"),
        (
            lora_tensors("lora_unet_mid_block_attn1_to_q", KOHYA),
            "lora_unet_mid_block",
        ),
    ],
)
def test_unknown_tensor_is_rejected(write, tensors, unknown):
    with pytest.raises(ConceptError, match=r"mine: contains '.*convert it, or use another file") as caught:
        load_concept(write(tensors), "mine", "mine")
    assert unknown in str(caught.value)


def test_file_without_tensors_is_rejected(write):
    with pytest.raises(ConceptError, match="mine: contains no adapter layers; use another file"):
        load_concept(write({}), "mine", "mine")


@pytest.mark.parametrize("key", ["class_name", "trigger", "licence"])
@pytest.mark.parametrize("value", [3, "a\nb", "\x1b[2J", "a" * 501])
def test_card_text_that_cannot_be_in_a_prompt_is_rejected(write, key, value):
    with pytest.raises(ConceptError, match=rf"mine.safetensors: invalid {key} .* in its card, expected") as caught:
        load_concept(write(lora_tensors(LAYER), costars=json.dumps({key: value})), "mine", "mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        (lora_tensors(LAYER), "diffusers"),
        (lora_tensors(LAYER, (".lora.down.weight", ".lora.up.weight")), "diffusers"),
        (lora_tensors(f"base_model.model.{LAYER}"), "peft"),
        (lora_tensors("lora_unet_conv_in", KOHYA), "kohya"),
        (lora_tensors("lora_te2_text_projection", KOHYA), "kohya"),
        ({"tokens.text_encoder.zxa": DOWN}, "costars"),
        ({"<zxa>": DOWN}, "textual inversion"),
    ],
)
def test_format_is_detected_from_the_keys(write, tensors, name):
    assert load_concept(write(tensors), "mine", "mine").format == name


def test_missing_or_damaged_file_is_rejected_in_one_line(tmp_path):
    with pytest.raises(ConceptError, match=r"gone.safetensors: no such file"):
        load_concept(tmp_path / "gone.safetensors", "gone", "gone")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\xff" * 100)
    with pytest.raises(ConceptError, match=r"damaged.safetensors: not a readable .safetensors file") as caught:
        load_concept(damaged, "damaged", "damaged")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("card", ["{", "[1]", '"text"'])
@pytest.mark.parametrize("key", ["costars", "lora_adapter_metadata"])
def test_damaged_metadata_is_rejected(write, key, card):
    path = write(lora_tensors(LAYER), **{key: card})
    with pytest.raises(ConceptError, match=f"^mine.safetensors: metadata {key!r} is not a JSON object; fetch"):
        load_concept(path, "mine", "mine")
