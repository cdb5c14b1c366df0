"""Unsupported kinds of files are rejected by name, with what to do instead."""

import pytest
import torch

from costars.concepts.load import load_concept
from costars.concepts.tensor_kinds import TENSOR_KINDS, Unsupported
from costars.concepts.unsupported import check_supported
from costars.errors import ConceptError

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
FLAT = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"

TRANSFORMER = "an adapter of a transformer"
KINDS = [
    ("model.diffusion_model.input_blocks.0.0.weight", "a full checkpoint", "use it as the model of the scene"),
    ("oft_unet_mid_block_attentions_0_proj_in.oft_diag", "an OFT of an old version", "extract a plain LoRA"),
    (f"{LAYER}.oft_r", "an OFT of an old version", "extract a plain LoRA"),
    (f"{FLAT}.bm.weight", "a GLoRA with a Tucker core", "extract a plain LoRA"),
    (f"{FLAT}.reshape_weight", "gives layers another shape", "use a LoRA of the same character"),
    (f"{LAYER}.lora_B.bias", "up matrices have biases", "train it without lora_bias"),
    (f"base_model.model.{LAYER}.modules_to_save.weight", "whole modules", "train it without modules_to_save"),
    (f"{LAYER}.token_adapter.trainable_tokens_delta", "with trained tokens", "train the tokens as a textual"),
    (f"{LAYER}.lora_diag", "a variant of LoRA with more tensors", "use a LoRA of the same character"),
    (f"{LAYER}.vera_lambda_b", "a variant of LoRA with more tensors", "use a LoRA of the same character"),
    ("lora_prior_unet_down_blocks_0_x.lora_down.weight", "a LoRA of a prior (Stable Cascade, K", "use one made for SD"),
    ("lora_te2_transformer_resblocks_0_attn_in_proj.lora_up.weight", "joint query, key and value", "layers of transf"),
    ("lycoris_text_model_encoder_layers_0_mlp_fc1.lokr_w1", "of an unnamed text encoder", "put text_encoder. or"),
    ("model.diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight", TRANSFORMER, "use one made for SD 1.5"),
    ("bundle_emb.zxa.string_to_param.*", "a LoRA with bundled embeddings", "separate them"),
    ("image_proj.proj.weight", "an IP-Adapter", "use a LoRA of the same character"),
    ("lllite_unet_input_blocks_1.weight", "a ControlNet", "use a LoRA of the same character"),
    (
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
        TRANSFORMER,
        "use one made for SD 1.5",
    ),
    (
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
        TRANSFORMER,
        "use one made for",
    ),
    ("diffusion_model.joint_blocks.0.lora_A.weight", TRANSFORMER, "use one made for SD 1.5"),
    ("lora_te3_encoder_block_0_layer_0.lora_down.weight", TRANSFORMER, "use one made for SD 1.5"),
    ("text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "of an unnamed text encoder", "put text_encoder. or"),
]


@pytest.mark.parametrize(("key", "what", "remedy"), KINDS)
def test_unsupported_kind_is_rejected_by_name(write, key, what, remedy):
    tensors = {f"{FLAT}.lora_down.weight": torch.ones(2, 6), f"{FLAT}.lora_up.weight": torch.ones(5, 2)}
    with pytest.raises(ConceptError) as caught:
        load_concept(write(tensors | {key: torch.ones(2, 2)}), "mine", "mine")
    message = str(caught.value)
    assert message.startswith("mine: is ") and what in message and repr(key) in message
    assert remedy in message and "\n" not in message


def test_every_unsupported_kind_is_tested():
    unsupported = {kind.what for kind in TENSOR_KINDS.values() if isinstance(kind, Unsupported)}
    assert {next(what for what in unsupported if part in what) for _, part, _ in KINDS} == unsupported


def test_first_unsupported_kind_of_the_table_is_reported():
    with pytest.raises(ConceptError, match="is an OFT of an old version"):
        check_supported(["lora_unet_double_blocks_0.lora_down.weight", "lora_unet_double_blocks_0.oft_diag"], "mine")


def test_plain_lora_is_supported(write):
    load_concept(
        write({f"{LAYER}.lora_A.weight": torch.ones(2, 6), f"{LAYER}.lora_B.weight": torch.ones(5, 2)}), "m", "m"
    )
