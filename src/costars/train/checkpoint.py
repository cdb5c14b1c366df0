"""Checkpoints of training runs: parameters, optimizer state and metadata in one .safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from costars.errors import TrainError
from costars.files.atomic import atomic_file

_PARAMETER = "parameter/"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors and metadata atomically: an earlier checkpoint stays until the new one is complete."""
    with atomic_file(path) as partial:
        save_file({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}, partial, dict(facts))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint. Raises TrainError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise TrainError(f"{path}: not a readable checkpoint ({reason}); delete it and start again") from None


def collect_state(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and optimizer state as named tensors."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[_PARAMETER + name] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{key}/{name}"] = torch.as_tensor(value)
    return tensors


def load_state(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Load the tensors of `collect_state`. Raises TrainError if they belong to other parameters."""
    if {k.removeprefix(_PARAMETER) for k in tensors if k.startswith(_PARAMETER)} != set(parameters):
        raise TrainError(
            "the checkpoint has other layers or words; start again, or restore the settings that it was started with"
        )
    states: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if key.startswith(_PARAMETER):
            parameters[name].data.copy_(tensor)
        elif name in states:
            states[name][kind] = tensor
    for name, state in states.items():
        if state:
            device = parameters[name].device
            optimizer.state[parameters[name]] = {k: v.to("cpu" if k == "step" else device) for k, v in state.items()}
