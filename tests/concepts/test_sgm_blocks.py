"""The blocks of the sgm UNet are translated as diffusers does, and exist in its UNet."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils import convert_unet_state_dict_to_peft

from costars.concepts.keys import module_path
from costars.concepts.sgm_blocks import from_sgm

TRANSFORMER = ["proj_in", "proj_out"] + [
    f"transformer_blocks_{i}_{layer}"
    for i in range(2)
    for layer in ("attn1_to_q", "attn1_to_k", "attn2_to_v", "attn2_to_out_0", "ff_net_0_proj", "ff_net_2")
]
RESNET = ["in_layers_2", "out_layers_3", "emb_layers_1", "skip_connection"]


def sgm_names(attention: dict[str, tuple[int, ...]], levels: int) -> list[str]:
    """Every kind of layer of an sgm UNet with two layers per level; attention is {side: levels that have it}."""
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


def convert_with_diffusers(names: list[str]) -> set[str]:
    """Module paths from diffusers' own converters."""
    tensors = {f"lora_unet_{n}.lora_{side}.weight": torch.zeros(1) for n in names for side in ("down", "up")}
    mapped = _maybe_map_sgm_blocks_to_diffusers(tensors, SimpleNamespace(layers_per_block=2))
    converted, _ = _convert_non_diffusers_lora_to_diffusers(mapped)
    peft = convert_unet_state_dict_to_peft(converted)
    return {key.partition(".lora_")[0] for key in peft}


def test_sdxl_blocks_equal_diffusers():
    ours = {module_path(f"lora_unet_{name}") for name in SDXL}
    assert len(ours) == len(SDXL) and None not in ours
    assert ours == convert_with_diffusers(SDXL)


def test_sd15_blocks_equal_diffusers_except_one_sampler():
    """diffusers converts output_blocks.2.1.conv to an attention layer; the UNet has an upsampler there.

    Converts one name at a time: diffusers confuses input_blocks.10 with input_blocks.1 in one call.
    """
    assert module_path("lora_unet_output_blocks_2_1_conv") == "unet.up_blocks.0.upsamplers.0.conv"
    for name in (n for n in SD15 if n != "output_blocks_2_1_conv"):
        assert {module_path(f"lora_unet_{name}")} == convert_with_diffusers([name])


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def layers(request, golden) -> list[str]:
    """Paths of all linear layers and convolutions of a small UNet of each family."""
    config = UNet2DConditionModel.load_config(golden / "tiny-sdxl" / "unet")
    if request.param == "sd15":
        config = {"block_out_channels": (8,) * 4, "norm_num_groups": 8, "cross_attention_dim": 8}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    return [n for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]


def test_sgm_layers_exist_in_the_unet(layers):
    sgm = SD15 if any("down_blocks.3" in name for name in layers) else SDXL
    existing = {f"unet.{name}" for name in layers}
    converted = {module_path(f"lora_unet_{name}") for name in sgm if "transformer_blocks_1" not in name}
    # The list has a shortcut in every resnet; the UNet has one only where the width changes.
    assert {path for path in converted - existing if not path.endswith("conv_shortcut")} == set()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("input_blocks.4.1.proj_in", "down_blocks.1.attentions.0.proj_in"),
        ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
        ("output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
        ("middle_block.2.in_layers.2", "mid_block.resnets.1.conv1"),
        ("out.2", "conv_out"),
        ("middle_block.3.proj_in", None),
        ("input_blocks.0.1.proj_in", None),
        ("conv_in", None),
    ],
)
def test_translation_of_single_layers(path, expected):
    assert from_sgm(path) == expected
