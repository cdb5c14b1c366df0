"""The scale alpha / rank comes from peft options if the tensors do not store it; every option is dealt with."""

import json
from dataclasses import fields

import pytest
import torch
from peft import (
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file

from costars.concepts.load import load_concept
from costars.concepts.peft_options import OPTIONS
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
    concept = load_concept(write({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}), "mine", "mine")
    (entry,) = concept.adapter.values()
    assert torch.equal(entry.down, down) and torch.equal(entry.up, up)
    assert concept.notes == (
        "'mine' is of peft and has no adapter_config.json beside it; its alpha is taken as its rank",
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"peft_type": "VERA"}, "peft_type 'VERA' is not supported; use one of LORA, LOHA, LOKR, OFT, BOFT, IA3"),
        ({"use_dora": True}, "mine: option 'use_dora' is set, but the file has no magnitudes"),
        *(
            ({"init_lora_weights": name}, f"option 'init_lora_weights' is '{name}', which is not supported: it changes")
            for name in ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga")
        ),
        ({"layer_replication": [[0, 4], [2, 5]]}, "option 'layer_replication' is '[[0, 4], [2, 5]]', which is not"),
        ({"bias": "lora_only"}, "option 'bias' is 'lora_only', which is not supported: it stores biases"),
        ({"lora_bias": True}, "option 'lora_bias' is 'True'"),
        ({"fan_in_fan_out": True}, "option 'fan_in_fan_out' is 'True'"),
        ({"modules_to_save": ["conv_out"]}, "option 'modules_to_save'"),
        ({"of_next_year": 3}, "option 'of_next_year' is '3', which is not known; save the adapter without it, or"),
        ({"alpha_pattern": {"(a+)+": 3}}, "'(a+)+' is not a name; save the LoRA with names of layers"),
        ({"alpha_pattern": {"to_q": "high"}}, "option 'alpha_pattern' is"),
        ({"alpha_pattern": ["to_q"]}, "expected names of layers with numbers"),
        ({"peft_type": "OFT", "coft": True}, "option 'coft' is 'True', which is not supported"),
        ({"lora_alpha": "high"}, "option 'lora_alpha' is 'high', expected a number below 1e+06"),
        ({"lora_alpha": 10**400}, "option 'lora_alpha' is '1000000"),
        ({"lora_alpha": float("nan")}, "option 'lora_alpha' is 'nan'"),
        ({"lora_alpha": True}, "option 'lora_alpha' is 'True'"),
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


@pytest.mark.parametrize("config", [LoraConfig, LoHaConfig, LoKrConfig, OFTConfig, BOFTConfig, IA3Config])
def test_every_option_of_peft_is_dealt_with(config):
    """A new field of peft fails here until it is decided what it means for a file."""
    options = config()
    table = OPTIONS[options.peft_type.value]
    assert {field.name for field in fields(config)} == table.keys()
    for name, value in options.to_dict().items():
        assert table[name].accepts(value), name


@pytest.mark.parametrize("part", ["unet.", "text_encoder."])
def test_options_of_diffusers_are_checked_for_each_part(write, part):
    options = json.dumps({f"{part}r": 2, f"{part}init_lora_weights": "pissa"})
    with pytest.raises(ConceptError, match=f"mine: option '{part}init_lora_weights' is 'pissa', which is not"):
        load_concept(write(lora_tensors(LAYER), lora_adapter_metadata=options), "mine", "mine")


def test_options_of_a_single_unet_name_no_part(write):
    """As UNet2DConditionModel.save_lora_adapter writes them."""
    options = LoraConfig(r=2, lora_alpha=8).to_dict() | {"target_modules": ["to_q"]}
    tensors = lora_tensors(QUERY)
    assert torch.equal(load_layer(write(tensors, lora_adapter_metadata=json.dumps(options))).up, UP * 4)
    with pytest.raises(ConceptError, match="mine: option 'init_lora_weights' is 'pissa', which is not supported"):
        load_layer(write(tensors, lora_adapter_metadata=json.dumps(options | {"init_lora_weights": "pissa"})))


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva", "mica"])
def test_initializations_that_keep_the_base_weights(write, init):
    options = json.dumps({"unet.r": 2, "unet.lora_alpha": 2, "unet.init_lora_weights": init})
    assert torch.equal(load_layer(write(lora_tensors(LAYER), lora_adapter_metadata=options)).up, UP)


@pytest.mark.parametrize(
    "pattern", [r"to_q", r"attn1.to_q", r"^mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_alpha_pattern_equals_peft(tmp_path, pattern, use_rslora):
    torch.manual_seed(0)
    nested, names = torch.nn.Linear(6, 5), QUERY.split(".")
    for name in reversed(names):
        outer = torch.nn.Module()
        outer.add_module(name, nested)
        nested = outer
    config = LoraConfig(r=2, lora_alpha=6, alpha_pattern={pattern: 5}, use_rslora=use_rslora, target_modules=["to_q"])
    model = get_peft_model(nested, config)
    layer = model.base_model.model.get_submodule(QUERY)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    model.save_pretrained(tmp_path)
    entry = load_layer(tmp_path / "adapter_model.safetensors")
    assert torch.allclose(weight_change(entry), layer.get_delta_weight("default"), atol=1e-6)
    options = {f"unet.{key}": value for key, value in config.to_dict().items() if key in ("r", "lora_alpha")}
    assert options == {"unet.r": 2, "unet.lora_alpha": 6}


def test_oft_of_peft_needs_its_options(write, random):
    with pytest.raises(
        ConceptError, match=r"needs the option use_cayley_neumann; put its adapter_config\.json beside it"
    ):
        load_concept(write({f"base_model.model.{QUERY}.oft_R.weight": random(2, 6)}), "mine", "mine")
