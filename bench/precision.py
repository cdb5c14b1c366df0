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

    The variants: everything in half precision, as costars draws; the UNet only; everything but the UNet.
    """
    errors: dict[str, dict[str, dict[str, float]]] = {name: {} for name in DTYPES}
    model = make_model(modules)
    with _without_tf32(), _add_best_guess(model):
        reference = draw(model)
        for name, dtype in DTYPES.items():
            with _cast_outside_unet(model, dtype) as mixed:
                errors[name]["all_but_unet"] = _relative_errors(draw(mixed), reference)
    for name, dtype in DTYPES.items():
        model = make_model({part: copy.deepcopy(module).to(dtype) for part, module in modules.items()})
        with _add_best_guess(model):
            errors[name]["all"] = _relative_errors(draw(model), reference)
            with _cast_outside_unet(model, torch.float32) as mixed:
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
def _cast_outside_unet(model: Model, dtype: torch.dtype) -> Iterator[Model]:
    """The model in another dtype for the block; its UNet computes in its own."""
    own = model.unet.dtype

    def cast(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cast(each) for name, each in value.items()}
        return value.to(own) if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1 else value

    def cast_inputs(
        _: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(cast(each) for each in arguments), {name: cast(each) for name, each in keywords.items()}

    def cast_output(_: Any, __: Any, output: Any) -> Any:
        output.sample = output.sample.to(dtype)
        return output

    handles = [model.unet.register_forward_pre_hook(cast_inputs, with_kwargs=True)]
    handles += [model.unet.register_forward_hook(cast_output)]
    try:
        yield replace(model, dtype=dtype)
    finally:
        for handle in handles:
            handle.remove()
