"""What a training run needs to go on: parameters, the optimizer's moments and a few facts, written whole or not."""

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


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors and facts; what lay there before stays until all is written."""
    with atomic_file(path) as partial:
        save_file({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}, partial, dict(facts))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, facts) of a checkpoint; raises TrainError for one that is damaged."""
    try:
        with safe_open(path, framework="pt") as file:  # type: ignore[no-untyped-call]
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        what = " ".join(str(error).split())
        raise TrainError(f"{path}: not a readable checkpoint ({what}); remove it and begin anew") from None


def collect_state(parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every parameter and each of its moments as named tensors."""
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
    """Put named tensors back into parameters and optimizer; raises TrainError where they are of other parameters."""
    if {k.removeprefix(_PARAMETER) for k in tensors if k.startswith(_PARAMETER)} != set(parameters):
        raise TrainError("the checkpoint is of other layers or words; begin anew, or give what it was begun with")
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if key.startswith(_PARAMETER):
            parameters[name].data.copy_(tensor)
        elif name in moments:
            moments[name][kind] = tensor
    for name, each in moments.items():
        if each:
            device = parameters[name].device
            optimizer.state[parameters[name]] = {k: v.to("cpu" if k == "step" else device) for k, v in each.items()}
