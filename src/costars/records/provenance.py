"""Hashes of the files and versions of the programs that a picture was made with."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version

import torch

from costars.records.regions import hash_masks
from costars.resolved_scene import ResolvedScene
from costars.types import Plan

PACKAGES = ("costars", "torch", "diffusers", "transformers")


def file_hashes(resolved: ResolvedScene, plan: Plan | None) -> Mapping[str, str]:
    """sha256 of every file that the picture was made with, by its field in the scene.

    The UNet's is with the versions. A plan's masks stand for its segmenter.
    """
    hashes = dict(resolved.model.info.parts_sha256)
    hashes |= {f"cast.{member.name}.concept": member.concept.sha256 for member in resolved.cast}
    for i, control in enumerate(resolved.controls):
        hashes |= {f"controls.{i}.model": control.sha256, f"controls.{i}.image": control.image_sha256}
    if resolved.style is not None:
        hashes["style.concept"] = resolved.style.sha256
    if plan is not None:
        hashes["masks"] = hash_masks(plan.regions)
    return hashes


def versions(resolved: ResolvedScene) -> Mapping[str, str]:
    """Python, the libraries, the model's hash, the class of its scheduler, device, CPU threads and dtype."""
    model = resolved.model
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "model_sha256": model.info.sha256,
        "scheduler": type(resolved.scheduler).__name__,
        "device": model.device.type,
        "threads": str(torch.get_num_threads()),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
