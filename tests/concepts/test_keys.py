"""The keys of every program lead to module paths of the model."""

import pytest
import torch

from costars.concepts.keys import ROLES, is_ignored, module_path, read_key

LORA_ENDINGS = [ending for ending, role in ROLES.items() if role in ("down", "up")]


@pytest.mark.parametrize(
    ("prefix", "part"),
    [("lora_te_", "text_encoder."), ("lora_te1_", "text_encoder."), ("lora_te2_", "text_encoder_2.")],
)
def test_kohya_names_of_text_encoder_layers(tiny, prefix, part):
    encoder = tiny.encoders[-1].module
    paths = [n for n, m in encoder.named_modules() if isinstance(m, torch.nn.Linear)]
    assert "text_projection" in paths and "text_model.encoder.layers.0.mlp.fc1" in paths
    assert [module_path(prefix + p.replace(".", "_")) for p in paths] == [part + p for p in paths]


@pytest.mark.parametrize("ending", LORA_ENDINGS)
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
        ("oft_unet_mid_block_attentions_0_proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("lycoris_mid_block_attentions_0_proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("lora_te2_transformer_resblocks_3_mlp_c_fc", "text_encoder_2.text_model.encoder.layers.3.mlp.fc1"),
        ("text_encoder_2.transformer.resblocks.3.attn.out_proj",
         "text_encoder_2.text_model.encoder.layers.3.self_attn.out_proj"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.3.mlp.fc1",
         "text_encoder.text_model.encoder.layers.3.mlp.fc1"),
        ("text_encoders.clip_g.transformer.text_model.encoder.layers.3.mlp.fc1",
         "text_encoder_2.text_model.encoder.layers.3.mlp.fc1"),
        ("clip_g.text_model.encoder.layers.3.mlp.fc2", "text_encoder_2.text_model.encoder.layers.3.mlp.fc2"),
        *(
            (f"{prefix}.output_blocks.5.1.transformer_blocks.0.attn1.to_out",
             "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0")
            for prefix in ("unet", "diffusion_model", "model.diffusion_model", "base_model.model.unet")
        ),
        ("unet.input_blocks.3.0.op", "unet.down_blocks.0.downsamplers.0.conv"),
        ("unet.time_embed.0", "unet.time_embedding.linear_1"),
        ("unet.out.0", "unet.conv_norm_out"),
        ("lora_unet_input_blocks_1_1_norm", "unet.down_blocks.0.attentions.0.norm"),
        ("lora_unet_middle_block_0_out_layers_0", "unet.mid_block.resnets.0.norm2"),
        ("lora_te_text_model_final_layer_norm", "text_encoder.text_model.final_layer_norm"),
    ],
)  # fmt: skip
def test_key_of_every_dialect_is_read(stem, path, ending):
    assert read_key(stem + ending) == (path, ROLES[ending])


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
def test_unknown_layer_has_no_path(stem):
    assert module_path(stem) is None


def test_key_with_unknown_ending_is_not_read():
    assert read_key("unet.conv_in.weight") is None


def test_only_empty_placeholders_are_ignored():
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.processor"
    assert is_ignored(key, 0) and not is_ignored(key, 4)
    assert not is_ignored(f"weights.unet.{key}", 0)
    assert not is_ignored("unet.conv_in.lora_A.weight", 0)
