"""The family table: it agrees with the bundled configurations, and the UNet layout with diffusers' modules."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel

from costars.model.families import (
    CROSS_KEYS_VALUES,
    FAMILIES,
    SD2,
    SD15,
    SDXL,
    attention_depths,
    attention_layers,
    count_cross_layers,
    cross_layer_index,
    detect_family,
    is_cross,
    is_middle,
)
from costars.model.single_file import CONFIGS


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def unet(family):
    """The family's released UNet, without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / family.name / "unet"))


def test_layout_agrees_with_released_unet(family, unet):
    assert unet.config["cross_attention_dim"] == family.text_width
    assert count_cross_layers(unet) == family.cross_layers
    assert bool(unet.config["use_linear_projection"]) == family.linear_projections
    assert (unet.config["addition_embed_type"] == "text_time") == any(e.pooled for e in family.text_encoders)


def test_text_encoders_agree_with_bundled_configs(family):
    width = 0
    for encoder in family.text_encoders:
        config = json.loads((CONFIGS / family.name / encoder.name / "config.json").read_text())
        assert config["architectures"] == [encoder.model_class]
        assert (CONFIGS / family.name / encoder.tokenizer / "tokenizer_config.json").is_file()
        width += config["hidden_size"]
    assert width == family.text_width


def test_prediction_is_that_of_the_bundled_scheduler(family):
    config = json.loads((CONFIGS / family.name / "scheduler" / "scheduler_config.json").read_text())
    assert config.get("prediction_type", "epsilon") == (family.prediction or "epsilon")


def test_recipes_are_those_of_a_known_family(family):
    assert FAMILIES[family.recipes].recipes == family.recipes


@pytest.mark.parametrize(
    ("parts", "width", "expected"),
    [
        (["text_encoder"], 768, SD15),
        (["text_encoder"], 1024, SD2),
        (["text_encoder"], 64, SD15),
        (["text_encoder"], None, SD15),
        (["text_encoder", "text_encoder_2"], 2048, SDXL),
        (["text_encoder", "text_encoder_2"], 64, SDXL),
    ],
)
def test_family_is_detected_by_text_encoders_and_width(parts, width, expected):
    assert detect_family(parts, width) is expected


def test_cross_layers_are_counted_down_mid_up(tiny):
    layers = attention_layers(tiny.unet)
    index = cross_layer_index(layers)
    stages = [name.partition(".")[0] for name in sorted(index, key=index.__getitem__)]
    assert list(dict.fromkeys(stages)) == ["down_blocks", "mid_block", "up_blocks"]
    assert list(index.values()) == list(range(len(index)))
    assert len(layers) == 2 * len(index)
    assert {name for name, _ in layers if is_cross(name)} == set(index)


def test_middle_and_depths_are_read_from_names():
    layers = [
        (f"{block}.attentions.0.transformer_blocks.0.attn2", None) for block in ("down_blocks.2", "down_blocks.1")
    ]
    assert attention_depths([*layers, ("mid_block.attentions.0", None), ("up_blocks.0.attentions.0", None)]) == [1, 2]
    assert is_middle("mid_block.attentions.0") and not is_middle("up_blocks.0.attentions.0")


def test_keys_and_values_are_modules_of_the_unet(tiny):
    names = [name for name, _ in tiny.unet.named_modules() if name.endswith(CROSS_KEYS_VALUES)]
    assert len(names) == 2 * count_cross_layers(tiny.unet)
