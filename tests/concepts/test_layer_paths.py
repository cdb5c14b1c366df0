"""Layer paths are restored from underscores, and tell the shape of the weight."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from costars.concepts.layer_paths import TEXT_LAYER, UNET_LAYER, kernel_size, split_underscores, weight_axes


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def layers(request, golden) -> dict[str, torch.nn.Module]:
    """All linear layers and convolutions of a small UNet of each family."""
    config = UNet2DConditionModel.load_config(golden / "tiny-sdxl" / "unet")
    if request.param == "sd15":
        config = {"block_out_channels": (8,) * 4, "norm_num_groups": 8, "cross_attention_dim": 8}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    return {n: m for n, m in unet.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}


def test_underscored_paths_of_a_unet_are_restored(layers):
    assert len(layers) > 100
    assert [split_underscores(name.replace(".", "_")) for name in layers] == list(layers)
    assert all(UNET_LAYER.fullmatch(name) for name in layers)


def test_axes_and_kernel_of_a_unet(layers):
    for name, layer in layers.items():
        family = "sd15" if isinstance(layer, torch.nn.Conv2d) else "sdxl"
        assert weight_axes(f"unet.{name}", family) == layer.weight.ndim
        assert kernel_size(f"unet.{name}") == (layer.weight.shape[-1] if layer.weight.ndim == 4 else 1)


@pytest.mark.parametrize("flat", ["to_q_something", "prior_blocks_0", "_conv_in"])
def test_unknown_component_has_no_path(flat):
    assert split_underscores(flat) is None


def test_text_encoder_layers():
    assert TEXT_LAYER.fullmatch("text_model.encoder.layers.11.self_attn.out_proj")
    assert TEXT_LAYER.fullmatch("text_projection")
    assert not TEXT_LAYER.fullmatch("text_model.embeddings.token_embedding")


def test_projection_depends_on_the_family():
    path = "unet.mid_block.attentions.0.proj_in"
    assert [weight_axes(path, family) for family in ("sd15", "sd2", "sdxl", "")] == [4, 2, 2, None]
    assert weight_axes("unet.other", "sdxl") is None
