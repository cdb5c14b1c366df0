"""The error of both stages' latents in half precision against float32, with the same weights and the same noise.

A random UNet predicts nothing, so its output is added to the best guess for pictures of unit noise,
sqrt(1 - alpha_bar) x_t: latents then go from the first step's noise level to deviation 1, as a trained UNet's do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from costars.model.model import Model

Latents = tuple[Tensor, Tensor]  # of stage 1 and of stage 2, (1, c, h, w) each
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def measure_latent_errors(
    modules: dict[str, Any], make_model: Callable[[dict[str, Any]], Model], draw: Callable[[Model], Latents]
) -> dict[str, dict[str, dict[str, float]]]:
    """{dtype: {variant: {stage: relative error}}}; modules are in float32, make_model builds a model from them.

    The variants: a model in half precision, as costars draws; and one whose UNet and text alone are. They are equal if
    costars rounds nothing else.
    """
    errors: dict[str, dict[str, dict[str, float]]] = {name: {} for name in DTYPES}
    model = make_model(modules)
    with _without_tf32(), _add_best_guess(model):
        reference = draw(model)
    for name, dtype in DTYPES.items():
        model = make_model({part: copy.deepcopy(module).to(dtype) for part, module in modules.items()})
        with _add_best_guess(model):
            errors[name]["all"] = _relative_errors(draw(model), reference)
            with _unet_alone(model) as mixed:
                errors[name]["unet_only"] = _relative_errors(draw(mixed), reference)
    return errors


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Within the block float32 convolutions on a GPU do not use TF32; matrix products do not by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _relative_errors(latents: Latents, reference: Latents) -> dict[str, float]:
    """|x - reference| / |reference| of each stage."""
    pairs = zip(("layout", "personalise"), latents, reference, strict=True)
    return {stage: float((x.double() - r.double()).norm() / r.double().norm()) for stage, x, r in pairs}


@contextmanager
def _add_best_guess(model: Model) -> Iterator[None]:
    """Within the block the UNet adds the best guess for unit noise to its prediction."""
    levels = (1 - model.scheduler.alphas_cumprod).sqrt().to(model.device)

    def add(_: Any, arguments: tuple[Any, ...], output: Any) -> Any:
        sample, t = arguments[:2]
        level = levels[torch.as_tensor(t, device=levels.device).long()]
        output.sample = (output.sample + level * sample.float()).to(output.sample.dtype)
        return output

    handle = model.unet.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _unet_alone(model: Model) -> Iterator[Model]:
    """The model in float32 for the block, but for the weights of its UNet and text encoders."""

    def cast_latents(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return arguments[0].to(model.unet.dtype), *arguments[1:]

    def cast_output(_: Any, __: Any, output: Any) -> Any:
        output.sample = output.sample.float()
        return output

    handles = [model.unet.register_forward_pre_hook(cast_latents), model.unet.register_forward_hook(cast_output)]
    try:
        yield replace(model, dtype=torch.float32)
    finally:
        for handle in handles:
            handle.remove()
