"""Layers in training on a model: low-rank ones beside its own, or its own; gone when the block ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from costars.model.families import ATTENTION_PROJECTIONS, TRANSFORMER_PROJECTIONS
from costars.types import Adapter, LowRank

# What of the UNet's transformers has low-rank layers: attention alone (OMG, section 4.1), or all that is linear.
UNET_LAYERS: Mapping[str, tuple[str, ...]] = {
    "attention": ATTENTION_PROJECTIONS,
    "transformer": TRANSFORMER_PROJECTIONS,
}
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
_OURS = "default"  # what peft calls an adapter that nobody named


@contextmanager
def low_rank(module: nn.Module, layers: tuple[str, ...], rank: int, alpha: float) -> Iterator[dict[str, nn.Parameter]]:
    """Trainable factors {path.A or path.B} beside these layers; rank r, the change is alpha / r * B @ A."""
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(layers)), module)  # type: ignore[arg-type]
        factors: dict[str, nn.Parameter] = {}
        for path, layer in _adapted(module):
            for side, part in (("A", layer.lora_A[_OURS]), ("B", layer.lora_B[_OURS])):
                part.to(torch.float32)
                factors[f"{path}.{side}"] = part.weight
        yield factors
    finally:
        _eject(module)


def as_adapter(part: str, factors: Mapping[str, Tensor], scale: float) -> Adapter:
    """The factors as an adapter in half precision, as files hold it, the scale in its up side."""
    paths = dict.fromkeys(key.rpartition(".")[0] for key in factors)
    entries = {p: LowRank(halved(factors[f"{p}.A"]), halved(factors[f"{p}.B"] * scale)) for p in paths}
    return {f"{part}.{_file_path(part, path)}": entry for path, entry in entries.items()}


def halved(tensor: Tensor) -> Tensor:
    """On the CPU in float32, each number as half precision has it."""
    return tensor.detach().cpu().to(torch.float16).to(torch.float32)


def _file_path(part: str, path: str) -> str:
    """As files call it: text encoders with the level that transformers 5 took out of one."""
    return path if part == "unet" or path.startswith("text_model.") else f"text_model.{path}"


def _adapted(module: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(path, layer) for path, layer in module.named_modules() if isinstance(layer, LoraLayer)]


def _eject(module: nn.Module) -> None:
    for path, layer in _adapted(module):
        parent = module.get_submodule(path.rpartition(".")[0])
        setattr(parent, path.rpartition(".")[2], layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config
    module.requires_grad_(False)


@contextmanager
def own_weights(module: nn.Module, ends: tuple[str, ...] = ()) -> Iterator[dict[str, nn.Parameter]]:
    """Trainable copies {path} of the weights of linear and convolution layers, in float32, in their place.

    ends are what a layer's path must end in, nothing for all of them. Norms and biases stay: a concept that
    is cast beside others changes matrices and kernels only.
    """
    before: list[tuple[nn.Linear | nn.Conv2d, Any]] = []
    try:
        copies: dict[str, nn.Parameter] = {}
        for path, layer in module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and path.endswith(ends or ""):
                before.append((layer, layer.weight))
                copies[path] = nn.Parameter(layer.weight.detach().to(torch.float32, copy=True))
                layer.weight = copies[path]
        yield copies
    finally:
        for layer, weight in before:
            layer.weight = weight
        module.requires_grad_(False)
