"""Kinds of file that cannot be applied are refused by their name, with what to do."""

import pytest
import torch

from costars.concepts.load import load_concept
from costars.concepts.unsupported import REFUSED
from costars.errors import ConceptError

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
FLAT = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"

KINDS = [
    ("model.diffusion_model.input_blocks.0.0.weight", "a whole checkpoint", "name it as the scene's model"),
    (f"{FLAT}.lora_mid.weight", "a LoCon with a Tucker core (lora_mid)", "extract a plain LoRA"),
    (f"{FLAT}.hada_t1", "a LoHa with a Tucker core", "extract a plain LoRA"),
    (f"{FLAT}.dora_scale", "a DoRA", "extract a plain LoRA"),
    (f"{LAYER}.lora_magnitude_vector", "a DoRA", "extract a plain LoRA"),
    (f"{LAYER}.lora_magnitude_vector.default.weight", "a DoRA", "extract a plain LoRA"),
    (f"{FLAT}.lokr_w1", "a LoKr", "extract a plain LoRA"),
    (f"base_model.model.{LAYER}.lokr_w2_a", "a LoKr", "extract a plain LoRA"),
    (f"{LAYER}.boft_R", "a BOFT", "extract a plain LoRA"),
    (f"{FLAT}.oft_blocks", "an OFT or BOFT", "extract a plain LoRA"),
    (f"{LAYER}.oft_R.weight", "an OFT or BOFT", "extract a plain LoRA"),
    ("oft_unet_mid_block_attentions_0_proj_in.oft_diag", "an OFT or BOFT", "extract a plain LoRA"),
    (f"{FLAT}.on_input", "an (IA)^3", "extract a plain LoRA"),
    (f"{LAYER}.ia3_l", "an (IA)^3", "extract a plain LoRA"),
    (f"{FLAT}.a1.weight", "a GLoRA", "extract a plain LoRA"),
    (f"{FLAT}.diff", "a full difference of weights", "extract a plain LoRA"),
    (f"{FLAT}.diff_b", "a full difference of weights", "extract a plain LoRA"),
    (f"{FLAT}.scalar", "a LyCORIS with a scalar", "train it without use_scalar"),
    (f"{FLAT}.w_norm", "a LyCORIS with trained norms", "train it without train_norm"),
    ("bundle_emb.zxa.string_to_param.*", "a LoRA with words bundled into it", "take them apart"),
    ("image_proj.proj.weight", "an IP-Adapter", "use a LoRA of the same character"),
    ("lllite_unet_input_blocks_1.weight", "a ControlNet", "use a LoRA of the same character"),
    ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "made for a transformer", "use one made for SD 1.5"),
    ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "made for a transformer", "use one made for"),
    ("diffusion_model.joint_blocks.0.lora_A.weight", "made for a transformer", "use one made for SD 1.5"),
    ("lora_te3_encoder_block_0_layer_0.lora_down.weight", "made for a transformer", "use one made for SD 1.5"),
    ("text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "that does not say of which", "put text_encoder. or"),
]


@pytest.mark.parametrize(("key", "what", "mend"), KINDS)
def test_a_kind_that_is_known_is_refused_by_its_name(write, key, what, mend):
    tensors = {f"{FLAT}.lora_down.weight": torch.ones(2, 6), f"{FLAT}.lora_up.weight": torch.ones(5, 2)}
    with pytest.raises(ConceptError) as caught:
        load_concept(write(tensors | {key: torch.ones(2, 2)}), "mine", "mine")
    said = str(caught.value)
    assert said.startswith("mine: is ") and what in said and repr(key) in said and mend in said and "\n" not in said


def test_every_kind_of_the_table_is_tried_above():
    tried = {next(what for _, what, _ in REFUSED if part in what) for _, part, _ in KINDS}
    assert tried == {what for _, what, _ in REFUSED}


def test_a_plain_lora_of_every_layer_is_none_of_them(write):
    load_concept(
        write({f"{LAYER}.lora_A.weight": torch.ones(2, 6), f"{LAYER}.lora_B.weight": torch.ones(5, 2)}), "m", "m"
    )
