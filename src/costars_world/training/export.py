"""Writes a finished part: fp16 weights and a card that describes the training."""

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


def save_fp16(part: ModelMixin | PreTrainedModel, folder: Path) -> None:
    """Write the configuration and fp16 weights of a part; the part itself is unchanged."""
    half = nn.Module.half(copy.deepcopy(part))  # the part's own half() warns about something irrelevant here
    half.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)  # a path of this machine
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_card(path: Path, recipe: Recipe, run: Run, device: torch.device, **extra: object) -> None:
    """Write data, recipe, duration, loss and extra values of a run as JSON."""
    card = {
        "data": "rendered by costars_world.render.world; nothing else",
        "recipe": asdict(recipe),
        "steps": run.step,
        "seconds": round(run.seconds, 1),
        "device": device.type,
        "loss": round(run.loss, 5),
        **extra,
    }
    path.write_text(json.dumps(card, indent=2) + "\n")
