"""The baseline: every adapter at once on one path, as people do today."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from costars.methods.encode import make_sampler
from costars.methods.method import Method
from costars.methods.paths import EVERYONE, everyone_adapter, everyone_path
from costars.model.lora import one_adapter_per_row
from costars.resolved_scene import ResolvedScene
from costars.sample.loop import denoise
from costars.types import Step


def sample(resolved: ResolvedScene) -> Generator[Step, None, Tensor]:
    """One path with the sum of all adapters and the own words of every member in the prompt."""
    model, controls = resolved.model, resolved.controls
    adapter = everyone_adapter(resolved)
    with model.text_encoders_on_device():
        path = everyone_path(resolved, adapter)
    sampler = make_sampler(resolved)
    latent = sampler.noise(model)
    with model.unet_on_device(controls), one_adapter_per_row(model.unet, "unet.", {EVERYONE: adapter}) as adapters:
        steps = denoise(model, latent, [path], sampler, adapters=adapters, controls=controls, stage="personalise")
        for step in steps:
            latent = step.latent
            yield step
    return latent


METHOD = Method(sample=sample)
