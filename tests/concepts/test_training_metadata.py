"""What trainers say about a file's arithmetic is implied by its tensors, refused, or noted."""

import inspect
import json
import re

import pytest
import torch
from lycoris import kohya

from costars.concepts.load import load_concept
from costars.concepts.training_metadata import ARGUMENTS
from costars.errors import ConceptError

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def load(write, arguments=None, **metadata):
    tensors = {f"{LAYER}.lora_down.weight": torch.ones(2, 6), f"{LAYER}.lora_up.weight": torch.ones(5, 2)}
    metadata |= {} if arguments is None else {"ss_network_args": json.dumps(arguments)}
    return load_concept(write(tensors, **metadata), "mine", "mine")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"algo": "LoCon", "conv_dim": "4", "conv_alpha": "1", "dropout": "0.1", "use_tucker": "False"},
        {"dora_wd": "False", "rs_lora": "True", "use_scalar": "True"},
        {"algo": "full", "dora_wd": "True"},
    ],
)
def test_known_arguments_need_no_note(write, arguments):
    metadata = {"ss_network_module": "lycoris.kohya", "ss_scale_weight_norms": "1.0", "ss_network_dropout": "0.1"}
    assert load(write, arguments, **metadata).notes == ()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"algo": "tlora"}, "was trained with algo 'tlora' (ss_network_args), which is not supported; use one of lora"),
        ({"dora_wd": "True"}, "was trained with dora_wd, but has no dora_scale; fetch it again"),
        ({"algo": "glora", "rs_lora": True}, "is a GLoRA with rs_lora, whose scale it does not store"),
    ],
)
def test_arguments_that_the_tensors_do_not_show_are_rejected(write, arguments, expected):
    with pytest.raises(ConceptError) as caught:
        load(write, arguments)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_known_is_noted(write):
    assert load(write, {"turbo": "True"}, ss_network_module="networks.mine").notes == (
        "'mine' was trained by 'networks.mine', which is not known; its tensors are read as they are",
        "'mine' was trained with the argument 'turbo', which is not known",
    )


@pytest.mark.parametrize(("alpha", "has_alpha", "noted"), [("1", False, True), ("2", False, False), ("1", True, False)])
def test_an_alpha_that_no_tensor_has_is_noted(write, random, alpha, has_alpha, noted):
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{layer}.lora_down.weight": random(2, 6), f"{layer}.lora_up.weight": random(5, 2)}
    tensors |= {f"{layer}.alpha": torch.tensor(1.0)} if has_alpha else {}
    path = write(tensors, ss_network_dim="2", ss_network_alpha=alpha)
    notes = load_concept(path, "mine", "mine").notes
    assert bool(notes) is noted
    if noted:
        assert "states ss_network_alpha 1 for ss_network_dim 2" in notes[0] and "set weight: 0.5" in notes[0]


@pytest.mark.parametrize("text", ["[]", "{", "None"])
def test_damaged_arguments_are_no_arguments(write, text):
    assert load(write, ss_network_args=text).notes == ()


def test_every_argument_of_lycoris_is_dealt_with():
    """A new argument of LyCORIS fails here until it is decided what it means for a file."""
    read = re.findall(r"kwargs\.get\(\s*\"(\w+)\"", inspect.getsource(kohya.create_network))
    assert len(read) > 20 and set(read) <= ARGUMENTS.keys()
