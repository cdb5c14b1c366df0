"""Weights are exported as fp16, with a card that describes the training."""

import json
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from costars_world.training import loop
from costars_world.training.export import save_fp16, write_card

RECIPE = loop.Recipe(steps=12, batch_size=4, learning_rate=0.05)


def test_card_describes_the_training(tmp_path):
    run = SimpleNamespace(step=12, seconds=1.25, loss=0.123456)
    write_card(tmp_path / "card.json", RECIPE, run, torch.device("cpu"), held_out=0.9)
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["steps"], card["device"], card["recipe"]["batch_size"], card["held_out"]) == (12, "cpu", 4, 0.9)
    assert (card["seconds"], card["loss"]) == (1.2, 0.12346)


def test_weights_are_fp16_and_the_module_is_unchanged(tmp_path):
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    save_fp16(vae, tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "diffusion_pytorch_model.safetensors").values()} == {torch.float16}
    assert vae.dtype == torch.float32
    assert "_name_or_path" not in json.loads((tmp_path / "config.json").read_text())
