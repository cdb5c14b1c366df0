"""The baseline: every adapter at once on one path, as people do today."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from costars.methods.prompts import class_names, own_words
from costars.model.adapters import concatenated, one_adapter_per_row, scaled, text_adapter
from costars.model.model import Model
from costars.sample.denoise import denoise, schedule
from costars.types import Job, Path, Step


def sample(model: Model, job: Job, scheduler: object) -> Generator[Step, None, Tensor]:
    """One path with the sum of all adapters and every member's own words in the prompt."""
    scene, concepts = job.scene, job.concepts
    classes = class_names(scene, concepts)
    prompt = scene.prompt.format_map({n: own_words(concepts[n], classes[n]) for n in classes})
    adapter = concatenated([scaled(concepts[n].adapter, scene.cast[n].weight) for n in classes])
    with text_adapter(model.encoders, adapter):
        text = model.encode_text(prompt)
        negative = model.encode_text(scene.negative_prompt) if scene.guidance_scale > 1 else None
    size_px = scene.size or model.facts.size_px
    steps = schedule(scheduler, scene.steps, model.device, seed=scene.seed)
    latent = model.initial_noise(size_px, scene.seed) * steps.scheduler.init_noise_sigma
    with one_adapter_per_row(model.unet, "unet.", {"all": adapter}) as adapters:
        for step in denoise(
            model,
            latent,
            [Path("all", text, negative, adapter="all")],
            lambda noise: noise[0],
            steps,
            guidance_scale=scene.guidance_scale,
            size_px=size_px,
            adapters=adapters,
            stage="personalise",
        ):
            latent = step.latent
            yield step
    return latent
