"""The baseline: every adapter at once on one path, as people do today."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from costars.methods.prompts import class_names, everyone_prompt
from costars.methods.sampling import negative_text, sampler_of
from costars.model.adapters import concatenated, one_adapter_per_row, scaled, text_adapter
from costars.model.model import Model
from costars.sample.denoise import denoise
from costars.types import Job, Path, Step


def sample(model: Model, job: Job, scheduler: object) -> Generator[Step, None, Tensor]:
    """One path with the sum of all adapters and every member's own words in the prompt."""
    scene, concepts = job.scene, job.concepts
    classes = class_names(scene, concepts)
    adapter = concatenated([scaled(concepts[n].adapter, scene.cast[n].weight) for n in classes])
    with text_adapter(model.encoders, adapter):
        text = model.encode_text(everyone_prompt(scene, classes, concepts))
        negative = negative_text(model, scene)
    path = Path("all", text, negative, adapter="all")
    steps = sampler_of(model, scene, scheduler)
    latent = steps.noise(model)
    with one_adapter_per_row(model.unet, "unet.", {"all": adapter}) as adapters:
        for step in denoise(model, latent, [path], steps, adapters=adapters, stage="personalise"):
            latent = step.latent
            yield step
    return latent
