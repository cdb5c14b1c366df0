"""Which versions made a picture."""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("costars", "torch", "diffusers", "transformers")


def versions(model_sha256: str, device: str, dtype: str) -> dict[str, str]:
    """What decides a picture's bytes beside its scene: Python, the libraries, the model's hash, device and dtype."""
    packages = {name: version(name) for name in PACKAGES}
    run = {"model_sha256": model_sha256, "device": device, "dtype": dtype}
    return {"python": platform.python_version(), **packages, **run}
