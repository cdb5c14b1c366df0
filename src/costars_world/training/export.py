"""What a finished part leaves behind: fp16 weights and a card that says how they came to be."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import ModelMixin
from torch import nn
from transformers import PreTrainedModel

from costars_world.training.loop import Recipe, Run


def save_half(part: ModelMixin | PreTrainedModel, folder: Path) -> None:
    """Write a part's configuration and its weights as fp16; the part itself stays as it is."""
    halved = nn.Module.half(copy.deepcopy(part))  # not the part's own half: that warns of what does not concern it
    halved.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)  # where this machine loaded the part from
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_card(path: Path, recipe: Recipe, run: Run, device: torch.device, **facts: object) -> None:
    """Write what a part was trained on, for how long and how well, beside its weights."""
    card = {
        "data": "rendered by costars_world.render.world; nothing else",
        "recipe": asdict(recipe),
        "steps": run.step,
        "seconds": round(run.seconds, 1),
        "device": device.type,
        "loss": round(run.loss, 5),
        **facts,
    }
    path.write_text(json.dumps(card, indent=2) + "\n")
