"""Hashes of the files and versions of the programs that a picture was made with."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version

import torch

from costars.errors import SceneError
from costars.records.regions import hash_masks
from costars.resolved_scene import ResolvedScene
from costars.types import Plan

PACKAGES = ("costars", "torch", "diffusers", "transformers")


def file_hashes(resolved: ResolvedScene, plan: Plan | None) -> Mapping[str, str]:
    """sha256 of every file that the picture was made with, by its field in the scene.

    The UNet's is with the versions. A plan's masks stand for its segmenter.
    """
    hashes = _layout_files(resolved)
    hashes |= {f"cast.{member.name}.concept": member.concept.sha256 for member in resolved.cast}
    if plan is not None:
        hashes["masks"] = hash_masks(plan.regions)
    return hashes


def layout_hashes(resolved: ResolvedScene) -> Mapping[str, str]:
    """sha256 of every file that the layout is drawn with, by its field in the scene."""
    return {"model": resolved.model.info.sha256, **_layout_files(resolved)}


def check_same_layout_files(plan: Plan, resolved: ResolvedScene) -> None:
    """Raises SceneError where a file has changed since the plan was drawn: stage 2 would continue another layout."""
    now = layout_hashes(resolved)
    for field, before in plan.hashes.items():
        if now.get(field, before) != before:
            raise SceneError(f"{field}: is another file than the plan was drawn with; plan the scene again")


def _layout_files(resolved: ResolvedScene) -> dict[str, str]:
    hashes = dict(resolved.model.info.parts_sha256)
    for i, control in enumerate(resolved.controls):
        hashes |= {f"controls.{i}.model": control.sha256, f"controls.{i}.image": control.image_sha256}
    if resolved.style is not None:
        hashes["style.concept"] = resolved.style.sha256
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
