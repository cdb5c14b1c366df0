"""Trainable LoRA layers on a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from costars.model.families import ATTENTION_PROJECTIONS, TRANSFORMER_PROJECTIONS
from costars.types import Adapter, LowRank

# Layers of the UNet with LoRA: the attention projections (OMG, section 4.1), or all linear layers of a transformer.
UNET_LAYERS: Mapping[str, tuple[str, ...]] = {
    "attention": ATTENTION_PROJECTIONS,
    "transformer": TRANSFORMER_PROJECTIONS,
}
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
_ADAPTER_NAME = "default"  # peft's name of an adapter without a name


@contextmanager
def lora_layers(
    module: nn.Module, layers: tuple[str, ...], rank: int, alpha: float
) -> Iterator[dict[str, nn.Parameter]]:
    """Add LoRA to these layers for the block; yields float32 factors {path.A or path.B}.

    The weight change is alpha / rank * B @ A. Factors are initialized from torch's global generator.
    """
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(layers)), module)  # type: ignore[arg-type]
        factors: dict[str, nn.Parameter] = {}
        for path, layer in _find_lora_layers(module):
            for side, linear in (("A", layer.lora_A[_ADAPTER_NAME]), ("B", layer.lora_B[_ADAPTER_NAME])):
                linear.to(torch.float32)
                factors[f"{path}.{side}"] = linear.weight
        yield factors
    finally:
        _remove_lora_layers(module)


def to_adapter(part: str, factors: Mapping[str, Tensor], scale: float) -> Adapter:
    """Factors as an adapter, rounded to half precision as in files; the scale is multiplied into `up`."""
    paths = dict.fromkeys(key.rpartition(".")[0] for key in factors)
    adapter: dict[str, LowRank] = {}
    for path in paths:
        down, up = round_to_half(factors[f"{path}.A"]), round_to_half(factors[f"{path}.B"] * scale)
        adapter[f"{part}.{_file_path(part, path)}"] = LowRank(down, up)
    return adapter


def round_to_half(tensor: Tensor) -> Tensor:
    """The tensor in float32 on the CPU, its values rounded to float16."""
    return tensor.detach().cpu().to(torch.float16).to(torch.float32)


def _file_path(part: str, path: str) -> str:
    """The path of a layer in files; transformers 5 removed the level text_model of one text encoder."""
    return path if part == "unet" or path.startswith("text_model.") else f"text_model.{path}"


def _find_lora_layers(module: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(path, layer) for path, layer in module.named_modules() if isinstance(layer, LoraLayer)]


def _remove_lora_layers(module: nn.Module) -> None:
    for path, layer in _find_lora_layers(module):
        parent_path, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent_path), name, layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config
    module.requires_grad_(False)
