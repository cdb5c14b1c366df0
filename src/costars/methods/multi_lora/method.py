"""The baseline: every adapter at once on one path, as people do today."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from costars.methods.encode import sampler_of
from costars.methods.paths import EVERYONE, everyone_adapter, everyone_path
from costars.model.lora import one_adapter_per_row
from costars.model.model import Model
from costars.sample.loop import denoise
from costars.types import Job, Step


def sample(model: Model, job: Job, scheduler: object) -> Generator[Step, None, Tensor]:
    """One path with the sum of all adapters and every member's own words in the prompt."""
    adapter = everyone_adapter(job)
    with model.reading():
        path = everyone_path(model, job, adapter)
    steps = sampler_of(model, job.scene, scheduler)
    latent = steps.noise(model)
    with model.drawing(job.controls), one_adapter_per_row(model.unet, "unet.", {EVERYONE: adapter}) as adapters:
        run = denoise(model, latent, [path], steps, adapters=adapters, controls=job.controls, stage="personalise")
        for step in run:
            latent = step.latent
            yield step
    return latent
