"""The scale alpha / rank comes from peft options if the tensors do not store it."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from costars.concepts.load import load_concept
from costars.errors import ConceptError

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
LAYER = f"unet.{QUERY}"
TEXT_LAYER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
DOWN, UP = torch.arange(12.0).view(2, 6), torch.arange(10.0).view(5, 2)


def weight_change(entry) -> torch.Tensor:
    """up @ down in the shape of the layer's weight."""
    return torch.einsum("or,r...->o...", entry.up.flatten(1), entry.down)


def load_layer(path):
    (entry,) = load_concept(path, "mine", "mine").adapter.values()
    return entry


def lora_tensors(layer: str) -> dict[str, torch.Tensor]:
    return {f"{layer}.lora_A.weight": DOWN, f"{layer}.lora_B.weight": UP}


def test_each_part_has_its_own_scale(write):
    alphas = json.dumps({"unet.r": 2, "unet.lora_alpha": 8, "text_encoder.lora_alpha": 1})
    concept = load_concept(
        write(lora_tensors(LAYER) | lora_tensors(TEXT_LAYER), lora_adapter_metadata=alphas), "mine", "mine"
    )
    assert torch.equal(concept.adapter[LAYER].up, UP * 4)
    assert torch.equal(concept.adapter[TEXT_LAYER].up, UP / 2)


@pytest.mark.parametrize("wrapped", ["", "unet."])
@pytest.mark.parametrize("alpha", [2, 8])
def test_peft_file_takes_alpha_from_its_options_file(tmp_path, wrapped, alpha):
    """The weight change of a file saved by peft equals peft's."""
    layer = torch.nn.Sequential()
    layer.mid_block = torch.nn.Linear(6, 5)
    layer.to_out = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["mid_block", "0"], init_lora_weights=False)
    model = get_peft_model(layer, config)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all(key.startswith("base_model.model.") for key in saved)
    renamed = {
        key.replace("base_model.model.mid_block", f"base_model.model.{wrapped}{QUERY}").replace(
            "base_model.model.to_out.0", f"base_model.model.{wrapped}down_blocks.0.resnets.0.conv1"
        ): value
        for key, value in saved.items()
    }
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    concept = load_concept(tmp_path / "adapter_model.safetensors", "mine", "mine")
    assert concept.format == "peft"
    linear, conv = model.base_model.model.mid_block, model.base_model.model.to_out[0]
    assert torch.allclose(
        weight_change(concept.adapter[f"unet.{QUERY}"]), linear.get_delta_weight("default"), atol=1e-6
    )
    conv_change = weight_change(concept.adapter["unet.down_blocks.0.resnets.0.conv1"])
    assert torch.allclose(conv_change, conv.get_delta_weight("default"), atol=1e-6)


def test_peft_file_without_options_has_scale_1(write, random):
    down, up = random(2, 6), random(5, 2)
    stem = f"base_model.model.{QUERY}"
    entry = load_layer(write({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}))
    assert torch.equal(entry.down, down) and torch.equal(entry.up, up)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported; use LORA"),
        ({"use_dora": True}, "mine: option 'unet.use_dora' is not supported; save"),
        ({"use_rslora": True}, "option 'unet.use_rslora' is not supported"),
        ({"alpha_pattern": {"to_q": 3}}, "option 'unet.alpha_pattern' is not supported"),
        ({"lora_alpha": "high"}, "option 'unet.lora_alpha' is 'high', expected a number below 1e+06"),
        ({"lora_alpha": 10**400}, "option 'unet.lora_alpha' is '1000000"),
        ({"lora_alpha": float("nan")}, "option 'unet.lora_alpha' is 'nan'"),
        ({"lora_alpha": True}, "option 'unet.lora_alpha' is 'True'"),
        ([], "adapter_config.json is not a JSON object"),
    ],
)
def test_unsupported_peft_options_are_rejected(write, tmp_path, random, options, expected):
    (tmp_path / "adapter_config.json").write_text(json.dumps(options))
    stem = f"base_model.model.{QUERY}"
    path = write({f"{stem}.lora_A.weight": random(2, 6), f"{stem}.lora_B.weight": random(5, 2)})
    with pytest.raises(ConceptError) as caught:
        load_concept(path, "mine", "mine")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_alpha_is_divided_by_the_rank_of_the_layer(write, random):
    """As in peft, rank_pattern changes the rank of a layer and so its scale."""
    layer = torch.nn.Sequential()
    layer.to_q = torch.nn.Linear(6, 5)
    config = LoraConfig(r=2, lora_alpha=6, rank_pattern={"to_q": 3}, target_modules=["to_q"], init_lora_weights=False)
    model = get_peft_model(layer, config)
    saved = get_peft_model_state_dict(model)
    tensors = {key.replace("base_model.model.to_q", f"unet.{QUERY}"): value for key, value in saved.items()}
    options = json.dumps({"unet.r": 2, "unet.lora_alpha": 6, "unet.rank_pattern": {"to_q": 3}})
    entry = load_layer(write(tensors, lora_adapter_metadata=options))
    assert torch.allclose(weight_change(entry), model.base_model.model.to_q.get_delta_weight("default"), atol=1e-6)
