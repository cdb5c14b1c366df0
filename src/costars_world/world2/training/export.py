"""What a run leaves behind: a few half-precision .safetensors files of bounded size, and how to read them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from costars_world.world2.training.files import UNET

SHARDS = 3  # files of the UNet: 43 MB in pieces below the 16 MiB that one file may have


def half_state(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A module's tensors as contiguous float16 on the CPU."""
    return {prefix + k: v.detach().to("cpu", torch.float16).contiguous() for k, v in module.state_dict().items()}


def save_shards(folder: Path, state: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write a state as SHARDS files of about equal size, each whole or not at all."""
    total = sum(t.numel() for t in state.values())
    shards: list[dict[str, Tensor]] = [{} for _ in range(SHARDS)]
    before = 0
    for name, tensor in state.items():
        shards[min(SHARDS - 1, before * SHARDS // total)][name] = tensor
        before += tensor.numel()
    for i, shard in enumerate(shards):
        save_whole(folder / f"{UNET}-{i}.safetensors", shard, facts)


def save_whole(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write a .safetensors file by way of another name, so that a killed run leaves no broken file."""
    partial = path.parent / f".{path.name}.{os.getpid()}"
    save_file(dict(state), partial, dict(facts))
    partial.replace(path)


def read_state(*paths: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of one or several files as float32, and the facts of the first.

    Raises ValueError where the files were written at different steps.
    """
    state: dict[str, Tensor] = {}
    facts: dict[str, str] = {}
    for path in paths:
        with safe_open(path, "pt") as data:
            found = dict(data.metadata() or {})
            if facts and found.get("step") != facts.get("step"):
                raise ValueError(f"{path.name} is of step {found.get('step')}, others of {facts.get('step')}")
            facts = facts or found
            state |= {name: data.get_tensor(name).float() for name in data.keys()}  # noqa: SIM118
    return state, facts


def read_unet(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The UNet's tensors from its shards, and their facts."""
    return read_state(*(folder / f"{UNET}-{i}.safetensors" for i in range(SHARDS)))


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with this, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
