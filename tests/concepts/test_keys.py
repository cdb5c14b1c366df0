"""The names of layers: whatever a program calls them, they are the model's own."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils import convert_unet_state_dict_to_peft

from costars.concepts.keys import ROLES, module_path, read_key

SPELLINGS = [s for s in ROLES if ROLES[s] in ("down", "up")]
TRANSFORMER = ["proj_in", "proj_out"] + [
    f"transformer_blocks_{i}_{layer}"
    for i in range(2)
    for layer in ("attn1_to_q", "attn1_to_k", "attn2_to_v", "attn2_to_out_0", "ff_net_0_proj", "ff_net_2")
]
RESNET = ["in_layers_2", "out_layers_3", "emb_layers_1", "skip_connection"]


def sgm_names(attention: dict[str, tuple[int, ...]], levels: int) -> list[str]:
    """Every kind of layer of an sgm UNet of two layers to a level; attention {side: levels that have it}."""
    names = ["input_blocks_0_0", "out_2", "time_embed_0", "time_embed_2"]
    names += [f"middle_block_{i}_{layer}" for i in (0, 2) for layer in RESNET]
    names += [f"middle_block_1_{layer}" for layer in TRANSFORMER]
    for side, first in (("input", 1), ("output", 0)):
        for number in range(first, 3 * levels):
            level, layer = divmod(number - first, 3)
            if side == "input" and layer == 2:
                names.append(f"input_blocks_{number}_0_op")
                continue
            names += [f"{side}_blocks_{number}_0_{inner}" for inner in RESNET]
            if level in attention[side]:
                names += [f"{side}_blocks_{number}_1_{inner}" for inner in TRANSFORMER]
            if side == "output" and layer == 2 and level < levels - 1:
                names.append(f"output_blocks_{number}_{2 if level in attention[side] else 1}_conv")
    return names


SDXL = [*sgm_names({"input": (1, 2), "output": (0, 1)}, 3), "label_emb_0_0", "label_emb_0_2"]
SD15 = sgm_names({"input": (0, 1, 2), "output": (1, 2, 3)}, 4)


def as_diffusers_does(names: list[str]) -> set[str]:
    """The paths that diffusers' own converters make of these names."""
    tensors = {f"lora_unet_{n}.lora_{side}.weight": torch.zeros(1) for n in names for side in ("down", "up")}
    mapped = _maybe_map_sgm_blocks_to_diffusers(tensors, SimpleNamespace(layers_per_block=2))
    converted, _ = _convert_non_diffusers_lora_to_diffusers(mapped)
    peft = convert_unet_state_dict_to_peft(converted)
    return {key.partition(".lora_")[0] for key in peft}


def test_the_blocks_of_sgm_are_those_that_diffusers_makes_of_them():
    ours = {module_path(f"lora_unet_{name}") for name in SDXL}
    assert len(ours) == len(SDXL) and None not in ours
    assert ours == as_diffusers_does(SDXL)


def test_so_they_are_for_sd15_but_for_the_sampler_of_a_level_without_attention():
    """diffusers calls output_blocks.2.1.conv an attention; the UNet has an upsampler there.

    It is asked for one name at a time: of several it takes input_blocks.10 for a part of input_blocks.1.
    """
    assert module_path("lora_unet_output_blocks_2_1_conv") == "unet.up_blocks.0.upsamplers.0.conv"
    for name in (n for n in SD15 if n != "output_blocks_2_1_conv"):
        assert {module_path(f"lora_unet_{name}")} == as_diffusers_does([name])


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def layers(request, golden) -> list[str]:
    """Every linear layer and convolution of a UNet with the blocks of a family."""
    config = UNet2DConditionModel.load_config(golden / "tiny-sdxl" / "unet")
    if request.param == "sd15":
        config = {"block_out_channels": (8,) * 4, "norm_num_groups": 8, "cross_attention_dim": 8}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    return [n for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]


def test_underscores_for_dots_lose_nothing(layers):
    assert len(layers) > 100
    assert [module_path("lora_unet_" + name.replace(".", "_")) for name in layers] == [f"unet.{n}" for n in layers]


def test_the_names_of_sgm_are_layers_of_the_unet(layers):
    sgm = SD15 if any("down_blocks.3" in name for name in layers) else SDXL
    there = {f"unet.{name}" for name in layers}
    made = {module_path(f"lora_unet_{name}") for name in sgm if "transformer_blocks_1" not in name}
    # The names are given a shortcut in every resnet; the UNet has one only where the width changes.
    assert {path for path in made - there if not path.endswith("conv_shortcut")} == set()


@pytest.mark.parametrize(
    ("prefix", "part"),
    [("lora_te_", "text_encoder."), ("lora_te1_", "text_encoder."), ("lora_te2_", "text_encoder_2.")],
)
def test_text_encoders_by_their_kohya_names(tiny, prefix, part):
    encoder = tiny.encoders[-1].module
    paths = [n for n, m in encoder.named_modules() if isinstance(m, torch.nn.Linear)]
    assert "text_projection" in paths and "text_model.encoder.layers.0.mlp.fc1" in paths
    assert [module_path(prefix + p.replace(".", "_")) for p in paths] == [part + p for p in paths]


@pytest.mark.parametrize("suffix", SPELLINGS)
@pytest.mark.parametrize(
    ("stem", "path"),
    [
        ("unet.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("base_model.model.mid_block.attentions.0.proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("base_model.model.unet.conv_in", "unet.conv_in"),
        ("unet.base_model.model.conv_in", "unet.conv_in"),
        ("down_blocks.0.resnets.0.conv1", "unet.down_blocks.0.resnets.0.conv1"),
        ("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q",
         "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out",
         "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"),
        ("text_encoder.text_model.encoder.layers.3.self_attn.to_q",
         "text_encoder.text_model.encoder.layers.3.self_attn.q_proj"),
        ("text_encoder.encoder.layers.3.mlp.fc1", "text_encoder.text_model.encoder.layers.3.mlp.fc1"),
        ("text_encoder_2.text_projection", "text_encoder_2.text_projection"),
        ("lora_unet_mid_block_resnets_1_time_emb_proj", "unet.mid_block.resnets.1.time_emb_proj"),
    ],
)  # fmt: skip
def test_every_spelling_leads_to_the_layer(stem, path, suffix):
    assert read_key(stem + suffix) == (path, ROLES[suffix])


@pytest.mark.parametrize(
    "stem",
    [
        "lora_unet_mid_block",
        "lora_unet_mid_block_attn1_to_q",
        "lora_unet_to_q_down_blocks_0",
        "lora_unet_down_blocks_4_attentions_0_proj_in",
        "lora_unet_input_blocks_1_2_proj_in",
        "lora_unet_input_blocks_0_1_proj_in",
        "lora_unet_middle_block_3_proj_in",
        "lora_unet_output_blocks_99999_0_in_layers_2",
        "lora_unet_input_blocks_1_0_proj_in_something",
        "lora_te_encoder_layers_0_mlp_fc1",
        "lora_te1_text_model_encoder_layers_x_mlp_fc1",
        "lora_unet_",
        "lycoris_unet_conv_in",
        "text_encoder_3.encoder.layers.0.mlp.fc1",
        "vae.conv_in",
    ],
)
def test_what_is_no_layer_has_no_path(stem):
    assert module_path(stem) is None


def test_a_key_without_a_known_ending_is_no_factor():
    assert read_key("unet.conv_in.weight") is None
