"""Checkpoints of training runs: parameters, optimizer state and metadata in one .safetensors file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from costars.errors import ConceptError, TrainError
from costars.files.atomic import atomic_file
from costars.files.safetensors_header import read_header
from costars.files.tensors import read_tensors, save_tensors

_PARAMETER = "parameter/"
# Shapes of what optimizers keep for a parameter of this shape; bitsandbytes keeps blocks of other shapes.
_STATE_SHAPES: Mapping[str, Callable[[tuple[int, ...]], tuple[int, ...] | None]] = {
    "parameter": lambda shape: shape,
    "exp_avg": lambda shape: shape,
    "exp_avg_sq": lambda shape: shape,
    "exp_avg_sq_row": lambda shape: shape[:-1],
    "exp_avg_sq_col": lambda shape: (*shape[:-2], *shape[-1:]),
    "step": lambda shape: (),
    "RMS": lambda shape: (),
}


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors and metadata atomically: an earlier checkpoint stays until the new one is complete."""
    with atomic_file(path) as partial:
        save_tensors({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}, partial, facts)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint. Raises TrainError if it is damaged."""
    try:
        return read_tensors(path), dict(read_header(path).metadata)
    except ConceptError as error:
        reason = str(error).removesuffix("; fetch it again")
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


def _check_tensor(key: str, tensor: Tensor, shape: tuple[int, ...] | None) -> None:
    is_finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
    if not is_finite or (shape is not None and tuple(tensor.shape) != shape):
        raise TrainError(
            f"the checkpoint's {key} is {tuple(tensor.shape)} {tensor.dtype}, want finite numbers"
            f"{'' if shape is None else f' of shape {shape}'}; start again with --replace instead of --resume"
        )


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
        if name not in parameters:
            continue  # the objective's
        shape = tuple(parameters[name].shape)
        _check_tensor(key, tensor, _STATE_SHAPES[kind](shape) if kind in _STATE_SHAPES else None)
        if key.startswith(_PARAMETER):
            parameters[name].data.copy_(tensor)
        else:
            states[name][kind] = tensor
    for name, state in states.items():
        if state:
            device = parameters[name].device
            optimizer.state[parameters[name]] = {k: v.to("cpu" if k == "step" else device) for k, v in state.items()}
