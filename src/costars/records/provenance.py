"""What a picture was made with: hashes of files and masks, versions of programs."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from costars.model.model import Model
from costars.records.regions import masks_hash
from costars.types import Job, Plan

PACKAGES = ("costars", "torch", "diffusers", "transformers")


def hashes_of(job: Job, model: Model, plan: Plan | None) -> Mapping[str, str]:
    """sha256 of every file of weights but the UNet's, by its place in the scene, of control pictures, and of who
    stands where, which is all that a segmenter has to say."""
    hashes = dict(model.facts.parts_sha256)
    hashes |= {f"cast.{name}.concept": concept.sha256 for name, concept in job.concepts.items()}
    for i, control in enumerate(job.controls):
        hashes |= {f"controls.{i}.model": control.sha256, f"controls.{i}.image": control.image_sha256}
    if job.style is not None:
        hashes["style.concept"] = job.style.sha256
    if plan is not None:
        hashes["masks"] = masks_hash(plan.regions)
    return hashes


def versions_of(model: Model, scheduler: Any) -> Mapping[str, str]:
    """Python, the libraries, the model's hash, the class of its scheduler, device, the CPU's threads and dtype."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "model_sha256": model.facts.sha256,
        "scheduler": type(scheduler).__name__,
        "device": model.device.type,
        "threads": str(torch.get_num_threads()),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
